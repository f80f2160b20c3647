"""Tables for people: the one way in which the plan, the status and the list of sweeps print theirs.

On a terminal a table fits the terminal's width, and has colors unless NO_COLOR is set. In a file or a pipe it is plain
text without escape sequences, and no line is wrapped or cut.
"""

import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sweep.text import fit_one_line

PIPED_WIDTH = 10_000  # columns; wider than any table, so that nothing is wrapped or cut
MAX_CELL_CHARACTERS = 1000
HEADER_STYLE = "dim"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        is_flexible: whether the column gets narrower, and its cells end in an ellipsis, if the terminal is too narrow.
    """

    header: str
    justify: Literal["left", "right"] = "left"
    is_flexible: bool = False


def build_table(columns: Sequence[Column], rows: Iterable[Sequence[str | RenderableType]], gap: int = 2) -> Table:
    """A table without lines, with ``gap`` spaces between its columns.

    A cell that is a string is data: it stays on one line, and its markup and control characters are only shown.
    """
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style=HEADER_STYLE)
    for column in columns:
        table.add_column(
            Text(column.header), justify=column.justify, no_wrap=not column.is_flexible, overflow="ellipsis"
        )
    for row in rows:
        table.add_row(*(make_cell(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def make_cell(text: str) -> Text:
    return Text(fit_one_line(text, MAX_CELL_CHARACTERS), no_wrap=True, overflow="ellipsis")


def render_text(renderable: RenderableType, width: int = PIPED_WIDTH) -> str:
    """``renderable`` as plain text, ``width`` columns wide at most, without spaces at the end of lines."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False, markup=False, highlight=False).print(
        renderable
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def print_renderable(renderable: RenderableType) -> None:
    """Print to stdout, fitted to a terminal or as plain text to a file or a pipe."""
    if is_terminal():
        Console(markup=False, highlight=False, emoji=False).print(renderable)
    else:
        print(render_text(renderable))


def is_terminal() -> bool:
    """Whether stdout is a terminal that can redraw, with an encoding that has the characters of a progress bar."""
    try:
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
        return sys.stdout.isatty() and encoding == "utf8" and not is_dumb
    except (AttributeError, ValueError):  # the process began without stdout, or it is closed
        return False


def find_output_width() -> int:
    """The width in columns of the terminal that stdout is; :data:`PIPED_WIDTH` if it is none."""
    return Console().width if is_terminal() else PIPED_WIDTH
