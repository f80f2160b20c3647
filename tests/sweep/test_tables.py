"""Tables for people: on a terminal they fit, elsewhere they are plain text that nothing wraps or cuts."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.tables import Column, build_table, find_output_width, print_renderable, render_text

ROOT = Path(__file__).parents[2]
COLUMNS = (Column("#", "right"), Column("trial"), Column("modules", is_flexible=True))
ROWS = [("1", "r=8", "q_proj, v_proj"), ("12", "r=16 seed=1", "-")]


def test_columns_have_one_width_and_lines_end_without_spaces() -> None:
    assert render_text(build_table(COLUMNS, ROWS)).splitlines() == [
        " #  trial        modules",
        " 1  r=8          q_proj, v_proj",
        "12  r=16 seed=1  -",
    ]


def test_a_flexible_column_gives_way_on_a_narrow_terminal() -> None:
    assert render_text(build_table(COLUMNS, ROWS), width=24).splitlines()[1] == " 1  r=8          q_proj…"


def test_text_in_a_pipe_is_not_cut_and_has_no_escape_sequences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    print_renderable(build_table(COLUMNS, [("1", "x" * 500, "y" * 500)]))
    line = capsys.readouterr().out.splitlines()[1]
    assert line == f"1  {'x' * 500}  {'y' * 500}"
    assert line.isascii()


@pytest.mark.parametrize("cell", ["[red]a[/red]", "a\nb", "a\x1b[2Jb\r", "\u202ea", ":smile:"])
def test_a_cell_stays_in_its_line(cell: str) -> None:
    lines = render_text(build_table((Column("a"), Column("b")), [(cell, "end")])).splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("  end")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", lines[1])
    assert ":smile:" not in cell or ":smile:" in lines[1]


def test_a_stream_that_is_closed_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert find_output_width() == 10_000


@pytest.mark.parametrize(("variables", "has_colors"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_colors_unless_no_color_is_set(variables: dict[str, str], has_colors: bool) -> None:
    code = "from sweep.tables import *; print_renderable(build_table([Column('a')], [[Text('r=8', 'yellow')]]))"
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **variables}
    if "NO_COLOR" not in variables:
        environment.pop("NO_COLOR", None)
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    written = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "r=8" in written
    assert ("\x1b[33m" in written) == has_colors
