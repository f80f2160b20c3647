"""report.md: the sweep in GitHub's Markdown, to paste into a pull request.

Owns the escaping of Markdown. Every text of a model, a data set or a person goes through :func:`escape` or
:func:`code`; nothing of it can start a tag, leave its cell, format, link or call a person.
"""

import re
from collections.abc import Iterable, Sequence

from sweep.report.analysis import overview, ranking
from sweep.report.analysis.analysis import Analysis
from sweep.report.analysis.comparison import OBJECTIVE
from sweep.report.analysis.effects import interval_text
from sweep.report.analysis.load import Sweep, metric_names, references
from sweep.report.analysis.texts import Prompt, shown_prompts
from sweep.report.formats import cells
from sweep.report.formats.commands import reproduce, use
from sweep.report.formats.comparison_table import HEADERS, LEGEND, comparisons
from sweep.text import UNKNOWN, escape_controls, format_setting

# As character references these can not be syntax (CommonMark 2.5), unlike backslash escapes, on whose meaning
# inside a table's cell parsers differ.
REFERENCES = {ord(ch): f"&#{ord(ch)};" for ch in "\\`*[]<>&|~$"}
INNER_WORD = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
PLAIN_CODE = re.compile(r"[A-Za-z0-9_.,:/@=+-]+(?: [A-Za-z0-9_.,:/@=+-]+)*")
TABLE_LEGEND = (
    "Brackets are 95 % intervals. Verdict: `high` is tied with the best and better than its baseline, `no gain` is not "
    "distinguishable from its baseline, `low` is behind the best or worse than its baseline. Peak memory is that of "
    "training; a baseline's is that of generating."
)
ALIGNED_RIGHT = (
    "r",
    "bits",
    "quality",
    "delta_baseline",
    "validation_loss",
    "forgetting",
    "trainable_params",
    "train_seconds",
    "peak_memory_bytes",
    "adapter_bytes",
)


def markdown_text(analysis: Analysis) -> str:
    """The whole report."""
    sweep, found = analysis.sweep, analysis.ranking
    parts = [
        f"# LoRA sweep {escape(sweep.name)}",
        f"**{escape(found.text)}**",
        escape(analysis.test.text) if analysis.test else "",
        "\n".join(f"- {escape(note)}" for note in found.notes),
        "## Table",
        _summary(analysis),
        TABLE_LEGEND,
        *_observations(analysis),
        *_effects(analysis),
        *_comparisons(analysis),
        *_votes(analysis),
        "## All metrics",
        _metrics(sweep),
        *_differences(sweep),
        *_failures(sweep),
        *_commands(analysis),
        "## Facts",
        *_facts(sweep),
        *_generations(sweep),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """``text`` as one line of Markdown that reads as ``text``; newlines become ``<br>``.

    The empty comment after ``@`` and ``#`` keeps GitHub from turning the word into a mention, which it does after
    character references are resolved.
    """
    text = escape_controls(text).translate(REFERENCES)
    text = INNER_WORD.sub("&#95;", text)
    text = re.sub(r"@", "&#64;<!-- -->", text)
    text = re.sub(r"#(?=\d)(?<!&#)", "&#35;<!-- -->", text)
    text = re.sub(r"://", "&#58;//", text)
    text = re.sub(r"(?i)(www)\.", r"\1&#46;", text)
    return "<br>".join(line.strip(" \t") for line in text.split("\n"))


def code(text: str) -> str:
    """``text`` as code where that needs no escaping, else escaped."""
    return f"`{text}`" if PLAIN_CODE.fullmatch(text) else escape(text)


def fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{escape_controls(text)}\n{fence}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """A GFM table of cells that are Markdown already."""
    rule = ["---:" if place < len(right) and right[place] else "---" for place in range(len(headers))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(headers), rule, *rows])


def _facts(sweep: Sweep) -> list[str]:
    facts = [*overview.facts(sweep), *overview.provenance(sweep)]
    listed = "\n".join(f"- **{escape(label)}:** {escape(text)}" for label, text in facts)
    return [listed, fenced(sweep.command) if sweep.command else ""]


def _summary(analysis: Analysis) -> str:
    columns = cells.summary_columns(analysis.sweep)
    chosen = analysis.ranking.recommended
    lines = []
    for entry in analysis.sweep.entries:
        line = [escape(cells.cell(entry.row, key)) for key, _ in columns]
        if chosen is not None and entry is chosen.entry:
            pairs = zip(line, columns, strict=True)
            line = [f"**{cell}**" if key in ("mark", "quality") else cell for cell, (key, _) in pairs]
        lines.append(line)
    return table([escape(header) for _, header in columns], lines, [key in ALIGNED_RIGHT for key, _ in columns])


def _observations(analysis: Analysis) -> list[str]:
    lines = [f"- {'**Note:** ' * (each.kind == 'warning')}{escape(each.text)}" for each in analysis.observations]
    return ["## Key observations", "\n".join(lines)] if lines else []


def _effects(analysis: Analysis) -> list[str]:
    """A line a level: its mean over the whole blocks, and its difference to the first level."""
    rows = []
    for effect in analysis.effects:
        contrasts = [None, *effect.contrasts]
        for level, mean, contrast in zip(effect.factor.levels, effect.levels, contrasts, strict=True):
            beside = f"{cells.change(OBJECTIVE, contrast.value)} {interval_text(contrast)}" if contrast else UNKNOWN
            shown = f"{cells.metric(OBJECTIVE, mean.value)} {interval_text(mean)}"
            rows.append([escape(effect.factor.name), escape(level), shown, beside, str(effect.blocks)])
    headers = ["factor", "level", f"mean {OBJECTIVE}", "against the first level", "pairs"]
    return ["## Main effects", table(headers, rows, [False, False, True, True, True])] if rows else []


def _comparisons(analysis: Analysis) -> list[str]:
    found = comparisons(analysis)
    rows = [[standing.row["mark"], escape(standing.row["label"]), *cells] for standing, cells in found]
    headers = ["row", "label", *HEADERS]
    return ["## Comparisons", table(headers, rows, [False, False, *(True for _ in HEADERS)]), LEGEND] if rows else []


def _votes(analysis: Analysis) -> list[str]:
    rows = [
        [mark, escape(label), str(t.wins), str(t.losses), str(t.ties), f"{t.win_rate:.0%} [{t.low:.0%}, {t.high:.0%}]"]
        for mark, label, t in analysis.tallies
    ]
    notes = "\n".join(f"- {escape(note)}" for note in analysis.vote_notes)
    headers = ["row", "label", "wins", "losses", "ties", "win rate"]
    shown = table(headers, rows, [False, False, True, True, True, True]) if rows else ""
    return ["## Blind comparison", shown, notes] if rows or notes else []


def _commands(analysis: Analysis) -> list[str]:
    chosen = analysis.ranking.recommended
    if chosen is None:
        return []
    row = analysis.sweep.rows[chosen.entry.places[0]]
    again = reproduce(analysis.sweep, row)
    return [
        "## Commands",
        *([f"Row {row['mark']} again:", fenced(again)] if again else []),
        f"To use row {row['mark']}:",
        fenced(use(row).rstrip()),
    ]


def _metrics(sweep: Sweep) -> str:
    names = metric_names(sweep)
    rows = [
        [row["mark"], escape(row["label"]), *(cells.metric(name, row.get(name)) for name in names)]
        for row in sweep.rows
    ]
    scale = references(sweep)
    if scale:
        rows.append(["", "the references themselves", *(cells.metric(name, scale.get(name)) for name in names)])
    shown = table(["row", "label", *map(code, names)], rows, [False, False, *(True for _ in names)])
    meant = [(name, cells.metric_help(name, overview.scorer(sweep))) for name in names]
    listed = "\n".join(f"- {code(name)}: {escape(text)}" for name, text in meant if text)
    return f"{shown}\n\n{listed}"


def _differences(sweep: Sweep) -> list[str]:
    found = overview.differences(sweep)
    if not found:
        return []
    lines = [
        f"- **{escape(name)}:** " + "; ".join(f"{escape(value)} ({rows})" for value, rows in values)
        for name, values in found
    ]
    return ["## Differences between rows", "These rows are not fully comparable.", "\n".join(lines)]


def _failures(sweep: Sweep) -> list[str]:
    failed = ranking.failures(sweep)
    if not failed:
        return []
    rows = [
        [row["mark"], escape(row["label"]), escape(format_setting(row["status"])), escape(cells.reason(row))]
        for row in failed
    ]
    return ["## Failed rows", table(["row", "label", "status", "reason"], rows)]


def _generations(sweep: Sweep) -> list[str]:
    prompts = shown_prompts(sweep)
    if not prompts:
        return ["## Generations", "No row has written anything yet."]
    fixed = [prompt for prompt in prompts if prompt.prompt_id.startswith("fixed-")]
    held_out = [prompt for prompt in prompts if prompt not in fixed]
    parts = []
    for title, group in (("Generations: fixed prompts", fixed), ("Generations: held-out prompts", held_out)):
        if group:
            parts.append(f"## {title}")
            parts.extend(part for prompt in group for part in _prompt(prompt))
    return parts


def _prompt(prompt: Prompt) -> list[str]:
    rows = [["", "**reference**", escape(prompt.reference), ""]] if prompt.reference is not None else []
    for written in prompt.written:
        notes = ", ".join(note for note, _ in written.notes)
        rows.append([written.row["mark"], escape(written.row["label"]), escape(written.text), escape(notes)])
    elsewhere = ", ".join(f"row {row['mark']}" for row in prompt.elsewhere)
    missing = ", ".join(f"row {row['mark']} ({escape(format_setting(row['status']))})" for row in prompt.missing)
    return [
        f"### {escape(prompt.title)}",
        f"<details><summary>prompt {escape(prompt.prompt_id)}</summary>\n\n{fenced(prompt.prompt)}\n\n</details>",
        table(["row", "label", "text", "notes"], rows),
        f"Asked about something else under this number: {elsewhere}." if elsewhere else "",
        f"No text from {missing}." if missing else "",
    ]
