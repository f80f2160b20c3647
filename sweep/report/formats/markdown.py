"""report.md: the report in GitHub's Markdown, to paste into a pull request.

Every text from a model, a data set or a person goes through :func:`escape_markdown` or :func:`format_code`, so that it
cannot start a tag, break its table cell, change the format, make a link or mention a person.
"""

import re
from collections.abc import Iterable, Sequence

from sweep.report.analysis.analyse import Analysis
from sweep.report.analysis.configurations import OBJECTIVE, TrialSummary
from sweep.report.analysis.effects import format_estimate_interval
from sweep.report.analysis.load import list_metrics, score_references
from sweep.report.analysis.overview import list_differences, list_facts, list_provenance, name_scorer
from sweep.report.analysis.texts import PromptTexts, list_prompts
from sweep.report.formats.cells import (
    describe_reason,
    explain_metric,
    format_cell,
    format_change,
    format_metric,
)
from sweep.report.formats.commands import write_merge_script, write_train_command
from sweep.report.formats.comparison_table import HEADERS, LEGEND, list_comparisons
from sweep.report.formats.summary import list_summary_columns
from sweep.text import UNKNOWN, escape_controls, format_setting

# A character reference is never syntax (CommonMark 2.5). Parsers disagree on backslash escapes inside a table cell.
CHARACTER_REFERENCES = {ord(ch): f"&#{ord(ch)};" for ch in "\\`*[]<>&|~$"}
WORD_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
HARMLESS_CODE = re.compile(r"[A-Za-z0-9_.,:/@=+-]+(?: [A-Za-z0-9_.,:/@=+-]+)*")
TABLE_LEGEND = (
    "Brackets are 95 % intervals. Verdict: `high` is tied with the best and better than its baseline; `no gain` cannot "
    "be told apart from its baseline; `low` is behind the best or worse than its baseline. Peak memory is measured "
    "during training; for a baseline, during generation."
)


def write_markdown(analysis: Analysis) -> str:
    """The whole report."""
    sweep, ranking = analysis.sweep, analysis.ranking
    parts = [
        f"# LoRA sweep {escape_markdown(sweep.name)}",
        f"**{escape_markdown(ranking.text)}**",
        escape_markdown(analysis.test.text) if analysis.test else "",
        "\n".join(f"- {escape_markdown(note)}" for note in ranking.notes),
        "## Table",
        write_summary(analysis),
        TABLE_LEGEND,
        *write_observations(analysis),
        *write_effects(analysis),
        *write_comparisons(analysis),
        *write_votes(analysis),
        "## All metrics",
        write_metrics(analysis),
        *write_differences(analysis),
        *write_failures(analysis),
        *write_commands(analysis),
        "## Facts",
        *write_facts(analysis),
        *write_generations(analysis),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- Markdown ----------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """``text`` as one line of Markdown that renders as ``text``; newlines become ``<br>``.

    GitHub finds mentions after it has resolved character references. The empty comment after ``@`` and ``#`` keeps it
    from making one.
    """
    text = escape_controls(text).translate(CHARACTER_REFERENCES)
    text = WORD_EDGE_UNDERSCORE.sub("&#95;", text)
    text = re.sub(r"@", "&#64;<!-- -->", text)
    text = re.sub(r"#(?=\d)(?<!&#)", "&#35;<!-- -->", text)
    text = re.sub(r"://", "&#58;//", text)
    text = re.sub(r"(?i)(www)\.", r"\1&#46;", text)
    return "<br>".join(line.strip(" \t") for line in text.split("\n"))


def format_code(text: str) -> str:
    """``text`` as code if all its characters are harmless there, else escaped."""
    return f"`{text}`" if HARMLESS_CODE.fullmatch(text) else escape_markdown(text)


def fence_code(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{escape_controls(text)}\n{fence}"


def write_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """A GFM table; the cells are Markdown already, and ``right`` says which columns are aligned to the right."""
    aligned = [*right, *(False for _ in headers)]
    rule = ["---:" if is_right else "---" for _, is_right in zip(headers, aligned, strict=False)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(headers), rule, *rows])


# --- sections ----------------------------------------------------------------------------------------------------


def write_facts(analysis: Analysis) -> list[str]:
    facts = [*list_facts(analysis.sweep), *list_provenance(analysis.sweep)]
    lines = "\n".join(f"- **{escape_markdown(label)}:** {escape_markdown(text)}" for label, text in facts)
    return [lines, fence_code(analysis.sweep.command) if analysis.sweep.command else ""]


def write_summary(analysis: Analysis) -> str:
    """The table of all configurations; the mark and the quality of the recommended one are bold."""
    columns = list_summary_columns(analysis)
    lines = []
    for row in analysis.rows.configurations:
        cells = {column.key: escape_markdown(format_cell(row, column.key)) for column in columns}
        if row.is_recommended:
            cells |= {key: f"**{cells[key]}**" for key in ("mark", "quality")}
        lines.append(list(cells.values()))
    headers = [escape_markdown(column.header) for column in columns]
    return write_table(headers, lines, [column.align == "right" for column in columns])


def write_observations(analysis: Analysis) -> list[str]:
    lines = [
        f"- {'**Note:** ' * (item.kind == 'warning')}{escape_markdown(item.text)}" for item in analysis.observations
    ]
    return ["## Key observations", "\n".join(lines)] if lines else []


def write_effects(analysis: Analysis) -> list[str]:
    """A table with a line for each level: its mean over the whole blocks, and its difference to the first level."""
    rows = []
    for effect in analysis.effects:
        contrasts = [None, *effect.contrasts]
        for level, mean, contrast in zip(effect.factor.levels, effect.levels, contrasts, strict=True):
            difference = UNKNOWN
            if contrast:
                difference = f"{format_change(OBJECTIVE, contrast.value)} {format_estimate_interval(contrast)}"
            mean_text = f"{format_metric(OBJECTIVE, mean.value)} {format_estimate_interval(mean)}"
            name = escape_markdown(effect.factor.name)
            rows.append([name, escape_markdown(level), mean_text, difference, str(effect.blocks)])
    headers = ["factor", "level", f"mean {OBJECTIVE}", "against the first level", "pairs"]
    return ["## Main effects", write_table(headers, rows, [False, False, True, True, True])] if rows else []


def write_comparisons(analysis: Analysis) -> list[str]:
    rows = [[*name_cells(row), *cells] for row, cells in list_comparisons(analysis)]
    table = write_table(["row", "label", *HEADERS], rows, [False, False, *(True for _ in HEADERS)])
    return ["## Comparisons", table, LEGEND] if rows else []


def write_votes(analysis: Analysis) -> list[str]:
    rows = [
        [*name_cells(row), str(votes.wins), str(votes.losses), str(votes.ties), win_rate]
        for row, votes in analysis.tallies
        for win_rate in [f"{votes.win_rate:.0%} [{votes.low:.0%}, {votes.high:.0%}]"]
    ]
    notes = "\n".join(f"- {escape_markdown(note)}" for note in analysis.vote_notes)
    headers = ["row", "label", "wins", "losses", "ties", "win rate"]
    table = write_table(headers, rows, [False, False, True, True, True, True]) if rows else ""
    return ["## Blind comparison", table, notes] if rows or notes else []


def write_commands(analysis: Analysis) -> list[str]:
    row = analysis.recommended_trial
    if row is None:
        return []
    again = write_train_command(analysis.sweep, row)
    return [
        "## Commands",
        *([f"To train row {row.mark} again:", fence_code(again)] if again else []),
        f"To use row {row.mark}:",
        fence_code(write_merge_script(row).rstrip()),
    ]


def write_metrics(analysis: Analysis) -> str:
    names, scale = list_metrics(analysis.sweep), score_references(analysis.sweep)
    rows = [
        [*name_cells(row), *(format_metric(name, row.metrics.get(name)) for name in names)]
        for row in analysis.rows.trials
    ]
    if scale:
        rows.append(["", "the reference texts", *(format_metric(name, scale.get(name)) for name in names)])
    table = write_table(["row", "label", *map(format_code, names)], rows, [False, False, *(True for _ in names)])
    meanings = [(name, explain_metric(name, name_scorer(analysis.sweep))) for name in names]
    lines = "\n".join(f"- {format_code(name)}: {escape_markdown(text)}" for name, text in meanings if text)
    return f"{table}\n\n{lines}"


def write_differences(analysis: Analysis) -> list[str]:
    differences = list_differences(analysis.sweep)
    lines = [
        f"- **{escape_markdown(name)}:** " + "; ".join(f"{escape_markdown(value)} ({rows})" for value, rows in values)
        for name, values in differences
    ]
    if not lines:
        return []
    return ["## Differences between rows", "These rows are not fully comparable.", "\n".join(lines)]


def write_failures(analysis: Analysis) -> list[str]:
    rows = [
        [*name_cells(row), escape_markdown(format_setting(row.status)), escape_markdown(describe_reason(row))]
        for row in analysis.rows.trials
        if row.is_failed
    ]
    return ["## Failed rows", write_table(["row", "label", "status", "reason"], rows)] if rows else []


def write_generations(analysis: Analysis) -> list[str]:
    prompts = list_prompts(analysis.sweep)
    if not prompts:
        return ["## Generations", "No row has written a text yet."]
    fixed = [prompt for prompt in prompts if prompt.prompt_id.startswith("fixed-")]
    held_out = [prompt for prompt in prompts if prompt not in fixed]
    parts = []
    for title, group in (("Generations: fixed prompts", fixed), ("Generations: held-out prompts", held_out)):
        if group:
            parts.append(f"## {title}")
            parts.extend(part for prompt in group for part in write_prompt(prompt))
    return parts


def write_prompt(prompt: PromptTexts) -> list[str]:
    rows = [["", "**reference**", escape_markdown(prompt.reference), ""]] if prompt.reference is not None else []
    for written in prompt.written:
        notes = ", ".join(words for words, _ in written.notes)
        rows.append([*name_cells(written.trial.summary), escape_markdown(written.text), escape_markdown(notes)])
    elsewhere = ", ".join(f"row {trial.summary.mark}" for trial in prompt.elsewhere)
    missing = ", ".join(
        f"row {trial.summary.mark} ({escape_markdown(format_setting(trial.summary.status))})"
        for trial in prompt.missing
    )
    name = escape_markdown(prompt.prompt_id)
    return [
        f"### {escape_markdown(prompt.title)}",
        f"<details><summary>prompt {name}</summary>\n\n{fence_code(prompt.prompt)}\n\n</details>",
        write_table(["row", "label", "text", "notes"], rows),
        f"Rows with another prompt under this number: {elsewhere}." if elsewhere else "",
        f"No text from {missing}." if missing else "",
    ]


def name_cells(row: TrialSummary) -> list[str]:
    """The first two cells of a line: the mark and the label."""
    return [row.mark, escape_markdown(row.label)]
