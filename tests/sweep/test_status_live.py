"""A sweep on a terminal: nothing drawn reaches the sweep as a fault, and a real terminal is left as it was."""

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pseudo_terminal import ROOT, Terminal, in_a_terminal

import sweep.status.live
from sweep.status.live import LiveTable, open_screen
from sweep.status.progress import RunningTrial, SweepProgress


def board(**changes: Any) -> SweepProgress:
    rows = {0: RunningTrial("t1", "r=8 attn 4bit", "cuda:0", time.time())}
    return SweepProgress(**{"name": "blog", "total": 40, "started": time.time(), "running": rows, **changes})


# ---- plain lines ----


def test_plain_lines_have_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    shown = board(started=time.time() - 123.2)
    with open_screen(shown) as plain:
        plain.print_line("r=8: loss 1.2")
        plain.draw_table(shown)
        plain.print_line("[red]x[/red] \x1b[2J\u202e\nforged\r")
    assert capsys.readouterr().out == "   123 s  r=8: loss 1.2\n   123 s  [red]x[/red] ⟨U+001B⟩[2J⟨U+202E⟩ ⏎ forged\n"


def test_a_long_line_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    with open_screen(board()) as plain:
        plain.print_line("y" * 10_000)
    assert capsys.readouterr().out.endswith("y… (8,000 more characters)\n")


class Faulty(io.StringIO):
    """A stdout whose every write raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "gone"), OSError(28, "full"), ValueError("closed")])
@pytest.mark.parametrize("make", [lambda shown: open_screen(shown), lambda shown: live(shown)], ids=["plain", "live"])
def test_a_stdout_that_fails_is_no_fault_of_the_sweep(
    error: Exception, make: Callable[[SweepProgress], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Faulty(error))
    with make(board()) as shown:
        shown.print_line("one")
        shown.draw_table(board())


@pytest.mark.parametrize("make", [lambda shown: open_screen(shown), lambda shown: live(shown)], ids=["plain", "live"])
def test_what_a_signal_handler_raises_passes(
    make: Callable[[SweepProgress], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(board()) as shown:
        monkeypatch.setattr(sys, "stdout", stdout := Faulty(KeyboardInterrupt()))
        if isinstance(shown, LiveTable):
            shown._console.file = stdout
        with pytest.raises(KeyboardInterrupt):
            shown.print_line("one")
        stdout.error = OSError()


def test_without_a_stdout_there_is_nothing_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with open_screen(board()) as plain:
        plain.print_line("one")


# ---- the live table, without a terminal ----


@contextlib.contextmanager
def live(shown: SweepProgress) -> Any:
    """The screen of a terminal, on whatever stdout is."""
    table_below = LiveTable(shown)
    try:
        table_below.open(shown)
        yield table_below
    finally:
        table_below.close()


def test_it_redraws_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    draws = []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sweep.status.live.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sweep.status.live, "draw_progress", lambda *_: draws.append(clock[0]) or "")
    with live(board()) as shown:
        for tick in range(1, 41):  # two seconds
            clock[0] = tick / 20
            shown.draw_table(board())
    assert draws == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


def test_a_table_that_cannot_be_drawn_leaves_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    monkeypatch.setattr(sweep.status.live, "draw_progress", lambda *_: 1 / 0)
    with live(board()) as shown:
        shown.draw_table(board())
        shown.print_line("still here")
    assert "still here\n" in stdout.getvalue()
    assert sys.stdout is stdout


# ---- a real pseudo terminal ----

SCRIPT = """
import os, signal, sys, time
from sweep.status.progress import RunningTrial, SweepProgress
from sweep.status.live import open_screen
rows = {number: RunningTrial(str(number), f"trial {number}", "cpu", time.time()) for number in range(12)}
board = SweepProgress("blog", 40, time.time(), {"waiting": 28, "running": 12}, rows)
"""


def under_a_terminal(body: str, size: tuple[int, int] = (24, 80), **more: Any) -> tuple[int, str]:
    return in_a_terminal(SCRIPT + textwrap.dedent(body), size, **more)


SAYING = """
with open_screen(board) as shown:
    for number in range(30):
        shown.print_line(f"line {number} " + "x" * (number * 10))
        shown.draw_table(board)
        time.sleep(0.02)
    print("from a library")
    print("[red]unfinished", end="", flush=True)
print("the report")
"""


@pytest.mark.parametrize("size", [(24, 80), (8, 60), (3, 40), (50, 200)])
def test_lines_stay_and_the_table_goes(size: tuple[int, int]) -> None:
    code, written = under_a_terminal(SAYING, size)
    terminal = Terminal(*size).feed(written)
    shown = "\n".join(terminal.text())
    assert code == 0, written
    assert [int(number) for number in re.findall(r"^ +\d+ s  line (\d+)", shown, re.MULTILINE)] == [*range(30)]
    assert written.count("of 40 done") > 2
    assert "x" * 290 in written  # for the terminal to wrap, so that a line that is copied is one
    assert "of 40 done" not in shown
    assert "━" not in shown
    assert terminal.text()[-3:] == ["from a library", "[red]unfinished", "the report"]
    assert "\x1b[?25l" in written
    assert terminal.cursor_shown


def test_while_it_runs_the_table_is_below_the_last_line() -> None:
    code, written = under_a_terminal("with open_screen(board) as shown:\n    shown.print_line('one')\n    os._exit(3)")
    assert code == 3
    lines = Terminal().feed(written).text()
    assert [lines[0].strip(), lines[1]] == ["0 s  one", "sweep blog  0 of 40 done, 28 waiting"]
    assert len(lines) == 1 + 3 + 12


@pytest.mark.parametrize("error", ["ValueError('bad')", "KeyboardInterrupt", "SystemExit(4)"])
def test_the_cursor_comes_back_after_an_exception(error: str) -> None:
    code, written = under_a_terminal(
        f"with open_screen(board) as shown:\n    shown.print_line('one')\n    raise {error}"
    )
    terminal = Terminal().feed(written)
    assert code != 0
    assert "\x1b[?25l" in written
    assert terminal.cursor_shown
    assert "of 40 done" not in "\n".join(terminal.text())
    assert error.partition("(")[0] in written or code == 4


def test_control_c_reaches_the_sweeps_own_handler() -> None:
    code, written = under_a_terminal(
        """
        got = []
        signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
        with open_screen(board) as shown:
            shown.print_line("ready")
            for _ in range(500):
                shown.draw_table(board)
                time.sleep(0.02)
                if got:
                    break
            shown.print_line(f"got {got}")
        """,
        press=b"\x03",
    )
    assert code == 0, written
    assert "got [2]" in "\n".join(Terminal().feed(written.replace("^C", "")).text())


def test_a_terminal_that_is_gone_does_not_end_the_sweep(tmp_path: Path) -> None:
    code, _ = under_a_terminal(
        f"""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with open_screen(board) as shown:
            shown.print_line("ready")
            for _ in range(100):
                shown.draw_table(board)
                shown.print_line("on")
                time.sleep(0.01)
        print("the report", flush=True)
        open({str(tmp_path / "done")!r}, "w")
        """,
        hang_up=True,
    )
    assert code == 0
    assert (tmp_path / "done").exists()


def test_a_low_terminal_shows_fewer_rows() -> None:
    _, written = under_a_terminal("with open_screen(board) as shown:\n    os._exit(3)", (10, 80))
    lines = Terminal(10, 80).feed(written).text()
    assert lines[-2].startswith("trial 3 ")
    assert lines[-1] == "and 8 more"


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}], ids=str)
def test_a_terminal_that_cannot_show_a_table_gets_plain_lines(variables: dict[str, str]) -> None:
    code, written = under_a_terminal(SAYING, **variables)
    assert code == 0
    assert "\x1b" not in written
    assert written.count("line 29") == 1
    assert "of 40 done" not in written


def test_no_color_is_heeded() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m")
    assert colour.search(under_a_terminal(SAYING)[1])
    assert not colour.search(under_a_terminal(SAYING, NO_COLOR="1")[1])


def test_errors_sent_to_a_file_stay_there(tmp_path: Path) -> None:
    file = str(tmp_path / "errors")
    body = (
        f"sys.stderr = open({file!r}, 'w')\nwith open_screen(board) as shown:\n    print('an error', file=sys.stderr)"
    )
    code, written = under_a_terminal(body)
    assert code == 0, written
    assert Path(file).read_text() == "an error\n"


def test_a_reader_that_left_does_not_end_the_sweep() -> None:
    """`python -m lora_sweep.train | head -1`: neither the lines nor the report after them nor Python's exit fail."""
    body = "with open_screen(board) as shown:\n    for _ in range(5):\n        shown.print_line('on')\n"
    body += "print('the report')\n"
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT + body], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        os.close(writing)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


def test_an_encoding_without_the_characters_gets_question_marks() -> None:
    body = "with open_screen(board) as shown:\n    shown.print_line('漢 \\ud83d \\x1b')\n"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, cwd=ROOT, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "     0 s  ? ? ?U+001B?\n"
