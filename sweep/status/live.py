"""A sweep under way, on a terminal: lines that scroll, and below them a table of the trials that run.

If stdout is not a terminal, only the lines are printed. Errors of printing never reach the sweep: a table that cannot
be drawn is left out, and nothing more is written to a terminal that is gone.
"""

import contextlib
import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweep.status.progress import SweepProgress
from sweep.status.table import draw_progress
from sweep.tables import is_terminal
from sweep.text import escape_controls, shorten_text

REDRAW_SECONDS = 0.25
LINES_ABOVE_ROWS = 6  # of the terminal: for the title, the bar, the header and some scrolling lines


class Screen(Protocol):
    """Where a sweep is shown. Its methods raise only what a signal handler raises."""

    def print_line(self, text: str) -> None:
        """Print a line for people, with control characters written out."""

    def draw_table(self, progress: SweepProgress) -> None:
        """Show the progress. This is cheap, and often does nothing."""


@contextlib.contextmanager
def open_screen(progress: SweepProgress) -> Iterator[Screen]:
    """The screen for stdout, until the block ends. On a terminal the lines stay and the table is removed."""
    if not is_terminal():
        yield PlainLines(progress.started)
        return
    table = LiveTable(progress)
    try:
        table.open(progress)
        yield table
    finally:
        table.close()


class PlainLines:
    """The screen of files, pipes and terminals without escape sequences: it prints lines and no table."""

    def __init__(self, started: float) -> None:
        self._started = started

    def print_line(self, text: str) -> None:
        with _ignore_errors():
            line = "".join(_format_line(text, self._started))
            encoding = sys.stdout.encoding or "utf-8"
            print(line.encode(encoding, "replace").decode(encoding), flush=True)

    def draw_table(self, progress: SweepProgress) -> None:
        pass


class LiveTable:
    """The screen of a terminal. It draws only when it is called: a thread could read a progress that is changing."""

    def __init__(self, progress: SweepProgress) -> None:
        self._started = progress.started
        self._drawn = -math.inf
        self._console = _Console(
            file=sys.stdout,
            force_terminal=True,
            force_interactive=True,
            force_jupyter=False,
            markup=False,
            highlight=False,
            emoji=False,
        )
        stderr_is_terminal = sys.stderr is not None and sys.stderr.isatty()  # errors that go to a file stay there
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=stderr_is_terminal)

    def open(self, progress: SweepProgress) -> None:
        with _ignore_errors():
            self._live.start()
        self.draw_table(progress)

    def print_line(self, text: str) -> None:
        with _ignore_errors():
            seconds, line = _format_line(text, self._started)
            self._console.print(Text.assemble((seconds, "dim"), line), soft_wrap=True)

    def draw_table(self, progress: SweepProgress) -> None:
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        with _ignore_errors():
            max_rows = max(1, self._console.height - LINES_ABOVE_ROWS)
            self._live.update(draw_progress(progress, time.time(), max_rows), refresh=True)

    def close(self) -> None:
        with _ignore_errors():
            self._live.update(Text("", end=""))
            self._live.stop()


def _format_line(text: str, started: float) -> tuple[str, str]:
    """The seconds since ``started``, and ``text`` on one line."""
    line = shorten_text(escape_controls(text.rstrip())).replace("\n", " ⏎ ")
    return f"{max(0.0, time.time() - started):6.0f} s  ", line


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process here."""
        _abandon_stdout()


@contextlib.contextmanager
def _ignore_errors() -> Iterator[None]:
    """Swallow what drawing raises. KeyboardInterrupt and SystemExit, which a signal handler raises, pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            _abandon_stdout()
    except Exception:  # noqa: BLE001 - a table that cannot be drawn must not end the trials
        pass


def _abandon_stdout() -> None:
    """Point stdout at the null device, because nobody reads it: else the report's print and Python's exit fail too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, sys.stdout.fileno())
        os.close(null_device)
