"""The report as printed on a terminal: a table with a line for each configuration, at most WIDTH characters wide."""

import textwrap

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sweep.report.analysis.analyse import Analysis
from sweep.report.analysis.ranking import count_trials
from sweep.report.analysis.rows import ReportRow
from sweep.report.formats.cells import format_cell
from sweep.report.formats.columns import TERMINAL_KEYS, find_column
from sweep.tables import render_text
from sweep.text import UNKNOWN, count_noun, escape_controls, format_count

WIDTH = 119  # characters; fixed, so that a pipe gets what a terminal shows
MIN_SHRUNK_WIDTH = 8  # characters that a column keeps when a line is too long
MAX_OBSERVATIONS = 8  # report.md and the page have all


def write_terminal(analysis: Analysis) -> str:
    """The table, the recommendation with its notes, and the key observations."""
    sweep, ranking = analysis.sweep, analysis.ranking
    head = wrap_text(f"sweep {escape_controls(sweep.name)}: {count_trials(sweep)}")
    sentences = [ranking.text, *ranking.notes, *([analysis.test.text] if analysis.test else [])]
    lines = [wrap_text(f"- {item.text}", "  ") for item in analysis.observations[:MAX_OBSERVATIONS]]
    more = len(analysis.observations) - MAX_OBSERVATIONS
    lines += [f"- {count_noun(more, 'more line')} in the report"] if more > 0 else []
    return "\n".join([head, "", draw_table(analysis.rows.configurations), "", *map(wrap_text, sentences), *lines])


def wrap_text(text: str, indent: str = "") -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False, subsequent_indent=indent))


def draw_table(rows: list[ReportRow]) -> str:
    """The table as plain text. If a line is too long, the names and the status are cut."""
    columns = [find_column(key) for key in TERMINAL_KEYS]
    headers = ["row", *(column.terminal_header or column.header for column in columns)]
    lines = [write_line(row) for row in rows]
    widths = fit_widths([headers, *lines], shrinking=(0, len(columns)))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for width, align in zip(widths, ["left", *(column.align for column in columns)], strict=True):
        table.add_column(
            justify="right" if align == "right" else "left", width=width, no_wrap=True, overflow="ellipsis"
        )
    for line in [headers, ["-" * width for width in widths], *lines]:
        table.add_row(*(Text(cell) for cell in line))
    return render_text(table)


def write_line(row: ReportRow) -> list[str]:
    cells = {key: format_cell(row, key) for key in TERMINAL_KEYS}
    cells["trainable_params"] = format_count(row.trainable_params)
    cells["verdict"] = row.verdict or UNKNOWN
    line = [f"{row.mark:>2} {escape_controls(row.label)}", *(cells[key] for key in TERMINAL_KEYS)]
    return [cell.replace("\n", " ").replace("\t", " ") for cell in line]


def fit_widths(lines: list[list[str]], shrinking: tuple[int, int]) -> list[int]:
    """The widths of the columns so that a line fits into WIDTH: two columns shrink, the wider one first.

    Args:
        shrinking: the indices of the columns that may be cut.
    """
    widths = [max(cell_len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    while (over := sum(widths) + 2 * (len(widths) - 1) - WIDTH) > 0:
        widest = max(shrinking, key=lambda column: widths[column])
        if widths[widest] <= MIN_SHRUNK_WIDTH:
            break
        other = min(widths[column] for column in shrinking)
        widths[widest] -= max(1, min(over, widths[widest] - max(other, MIN_SHRUNK_WIDTH)))
    return widths
