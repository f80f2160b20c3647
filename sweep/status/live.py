"""The progress of a running sweep on a terminal: lines that scroll, and below them a table of the running trials.

If stdout is not a terminal, only the lines are printed. An error while printing never reaches the sweep: a table that
cannot be drawn is left out, and nothing more is written to a terminal that was closed.
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
LINES_ABOVE_ROWS = 6  # the title, the bar, the header and some of the lines that scroll


class Screen(Protocol):
    """Where the progress of a sweep is shown. Its methods raise only what a signal handler raises."""

    def print_line(self, text: str) -> None:
        """Print a line for people. Control characters are written out."""

    def draw_table(self, progress: SweepProgress) -> None:
        """Show the progress. The caller may call this often: it redraws only every REDRAW_SECONDS."""


@contextlib.contextmanager
def open_screen(progress: SweepProgress) -> Iterator[Screen]:
    """The screen for stdout, until the block ends. On a terminal the table is then removed, and the lines stay."""
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
    """The screen for files, pipes and terminals without escape sequences. It prints lines and no table."""

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
    """The screen for a terminal. It draws without a thread, which could read the progress while it changes."""

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
        """Called by rich when nobody reads stdout. Rich itself would end the process."""
        _abandon_stdout()


@contextlib.contextmanager
def _ignore_errors() -> Iterator[None]:
    """Ignore errors of drawing. KeyboardInterrupt and SystemExit, which a signal handler raises, are not ignored."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            _abandon_stdout()
    except Exception:  # noqa: BLE001 - a table that cannot be drawn must not end the trials
        pass


def _abandon_stdout() -> None:
    """Send stdout to the null device after its reader is gone, so that later prints and Python's exit do not fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, sys.stdout.fileno())
        os.close(null_device)
