"""The summary as a terminal shows it: one line a row, at most WIDTH characters wide."""

import textwrap

from sweep.report import ranking, show
from sweep.report.table import Row, Sweep

WIDTH = 119
SHRINKING = (0, 2)  # label and targets give way when a line is too long
HEADERS = ("row", "r", "targets", "bits", "quality", "val loss", "trainable", "train s", "peak mem", "status")
LEFT = (0, 2, 9)


def terminal_text(sweep: Sweep) -> str:
    """The table and the line on the best row."""
    lines = [HEADERS, *(_cells(row) for row in sweep.rows)]
    widths = _widths(lines)
    shown = [
        "  ".join(_fit(*cell) for cell in zip(range(len(HEADERS)), line, widths, strict=True)).rstrip()
        for line in lines
    ]
    shown.insert(1, "  ".join("-" * width for width in widths))
    head = _wrapped(f"sweep {show.visible(sweep.name)}: {ranking.tally(sweep)}")
    return "\n".join([head, "", *shown, "", _wrapped(ranking.best(sweep).text)])


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False))


def _cells(row: Row) -> tuple[str, ...]:
    label = f"{row['mark']:>2} {show.visible(row['label'])}"
    targets = "" if row["kind"] == "baseline" else show.setting(row.get("targets"))
    return (
        label,
        show.setting(row.get("r")),
        targets,
        show.setting(row["bits"]),
        show.metric("quality", row.get("quality")),
        show.metric("validation_loss", row.get("validation_loss")),
        show.count(row["trainable_params"]),
        show.metric("train_seconds", row.get("train_seconds")),
        show.size(row["peak_memory_bytes"]),
        show.status(row),
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
