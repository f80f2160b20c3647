"""The summary as a terminal shows it: one line a row, at most WIDTH characters wide."""

import textwrap

from sweep.report.analysis import ranking
from sweep.report.analysis.analysis import Analysis
from sweep.report.analysis.load import Row
from sweep.report.formats import cells
from sweep.text import UNKNOWN, count_noun, escape_controls, format_bytes, format_count

WIDTH = 119
HEADERS = ("row", "quality", "vs base", "verdict", "loss", "trainable", "train s", "peak mem", "status")
OBSERVATIONS = 8  # lines of them; the report has all
SHRINKING = (0, 8)  # what gives way when a line is too long
LEFT = (0, 3, 8)


def terminal_text(analysis: Analysis) -> str:
    """The table, what to use, and what is known of it."""
    sweep, found = analysis.sweep, analysis.ranking
    lines = [HEADERS, *(_cells(entry.row) for entry in sweep.entries)]
    widths = _widths(lines)
    shown = [
        "  ".join(_fit(*cell) for cell in zip(range(len(HEADERS)), line, widths, strict=True)).rstrip()
        for line in lines
    ]
    shown.insert(1, "  ".join("-" * width for width in widths))
    head = _wrapped(f"sweep {escape_controls(sweep.name)}: {ranking.tally(sweep)}")
    said = [found.text, *found.notes, *([analysis.test.text] if analysis.test else [])]
    listed = [_wrapped(f"- {each.text}", "  ") for each in analysis.observations[:OBSERVATIONS]]
    left = len(analysis.observations) - OBSERVATIONS
    listed += [f"- {count_noun(left, 'more line')} in the report"] if left > 0 else []
    return "\n".join([head, "", *shown, "", *map(_wrapped, said), *listed])


def _wrapped(text: str, indent: str = "") -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False, subsequent_indent=indent))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row['mark']:>2} {escape_controls(row['label'])}",
        cells.cell(row, "quality"),
        cells.cell(row, "delta_baseline"),
        row.get("verdict") or UNKNOWN,
        cells.metric("validation_loss", row.get("validation_loss")),
        format_count(row["trainable_params"]),
        cells.metric("train_seconds", row.get("train_seconds")),
        format_bytes(row["peak_memory_bytes"]),
        cells.status(row),
    )


def _widths(lines: list[tuple[str, ...]]) -> list[int]:
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADERS))]
    while (over := sum(widths) + 2 * (len(widths) - 1) - WIDTH) > 0:
        widest = max(SHRINKING, key=lambda place: widths[place])
        if widths[widest] <= 8:
            break
        other = min(widths[place] for place in SHRINKING)
        widths[widest] -= max(1, min(over, widths[widest] - max(other, 8)))
    return widths


def _fit(place: int, text: str, width: int) -> str:
    text = text.replace("\n", " ")
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.ljust(width) if place in LEFT else text.rjust(width)
