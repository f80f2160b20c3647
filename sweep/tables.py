"""Tables for people: the plan, the status and the list of sweeps all print theirs with this module.

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
        is_flexible: whether the column shrinks on a narrow terminal. Cells that are cut end in an ellipsis.
    """

    header: str
    justify: Literal["left", "right"] = "left"
    is_flexible: bool = False


def build_table(columns: Sequence[Column], rows: Iterable[Sequence[str | RenderableType]], gap: int = 2) -> Table:
    """A table without lines, with ``gap`` spaces between its columns.

    A string in a cell stays on one line. Its markup has no effect, and its control characters are written out.
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
    """Print to stdout: fitted to the width of a terminal, or as plain text into a file or a pipe."""
    if is_terminal():
        Console(markup=False, highlight=False, emoji=False).print(renderable)
    else:
        print(render_text(renderable))


def is_terminal() -> bool:
    """Whether stdout is a terminal that can redraw lines, and its encoding can print a progress bar."""
    try:
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
        return sys.stdout.isatty() and encoding == "utf8" and not is_dumb
    except (AttributeError, ValueError):  # the process has no stdout, or stdout is closed
        return False


def find_output_width() -> int:
    """The width of the terminal in columns; :data:`PIPED_WIDTH` if stdout is not a terminal."""
    return Console().width if is_terminal() else PIPED_WIDTH
