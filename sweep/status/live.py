"""A sweep under way, on a terminal: lines that scroll, and below them a table of what runs at this moment.

Where stdout is no terminal there are only the lines. Nothing that goes wrong here reaches the sweep: a table that
cannot be drawn is not drawn, and a terminal that is gone is written to no more.
"""

import contextlib
import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweep.status.progress import Board
from sweep.status.table import table
from sweep.text import escape_controls, shorten_text

REDRAW_SECONDS = 0.25
PLAIN_TEXT: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}  # texts are data


class Screen(Protocol):
    """Where a sweep is seen. Neither method raises anything but what a signal handler raised."""

    def say(self, text: str) -> None:
        """A line for people. What would do something instead of being seen is spelt out."""

    def refresh(self, board: Board) -> None:
        """Show the board; cheap, and often nothing at all."""


@contextlib.contextmanager
def screen(board: Board) -> Iterator[Screen]:
    """The screen that stdout can be, until the block ends. Of the live one its lines stay and its table goes."""
    if not _is_terminal():
        yield PlainLines(board.started)
        return
    live = LiveTable(board)
    try:
        live.open(board)
        yield live
    finally:
        live.close()


class PlainLines:
    """For files, pipes and terminals that know no escapes: a line is printed, a table is not."""

    def __init__(self, started: float) -> None:
        self._started = started

    def say(self, text: str) -> None:
        with _harmless():
            line = "".join(_line(text, self._started))
            encoding = sys.stdout.encoding or "utf-8"
            print(line.encode(encoding, "replace").decode(encoding), flush=True)

    def refresh(self, board: Board) -> None:
        pass


class LiveTable:
    """Draws only when it is called: no thread that would read a board while it changes."""

    def __init__(self, board: Board) -> None:
        self._started = board.started
        self._drawn = -math.inf
        self._console = _Console(
            file=sys.stdout, force_terminal=True, force_interactive=True, force_jupyter=False, **PLAIN_TEXT
        )
        on_terminal = sys.stderr is not None and sys.stderr.isatty()  # errors that go to a file stay there
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=on_terminal)

    def open(self, board: Board) -> None:
        with _harmless():
            self._live.start()
        self.refresh(board)

    def say(self, text: str) -> None:
        with _harmless():
            when, what = _line(text, self._started)
            self._console.print(Text.assemble((when, "dim"), what), soft_wrap=True)

    def refresh(self, board: Board) -> None:
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        with _harmless():
            rows = max(1, self._console.height - 6)
            self._live.update(table(board, time.time(), rows), refresh=True)

    def close(self) -> None:
        with _harmless():
            self._live.update(Text("", end=""))
            self._live.stop()


def _line(text: str, started: float) -> tuple[str, str]:
    what = shorten_text(escape_controls(text.rstrip())).replace("\n", " ⏎ ")
    return f"{max(0.0, time.time() - started):6.0f} s  ", what


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process here."""
        _give_up_stdout()


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Swallows what drawing raises; the exceptions that a signal handler raises pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            _give_up_stdout()
    except Exception:  # noqa: BLE001 - a table that cannot be drawn is no fault of the trials
        pass


def _give_up_stdout() -> None:
    """Nobody reads stdout any more: let it lead nowhere, or the report's print and Python's exit fail on it too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _is_terminal() -> bool:
    """Whether stdout is a terminal that can redraw, in an encoding that has the bars."""
    try:
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        return (
            sys.stdout.isatty() and encoding == "utf8" and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
        )
    except (AttributeError, ValueError):  # there was none when the process began, or it is closed
        return False
