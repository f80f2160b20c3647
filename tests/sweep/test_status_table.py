"""The table of a sweep under way: what stands in it at which width, and that no text in it does anything."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from sweep.status.progress import RunningTrial, SweepProgress
from sweep.status.table import draw_progress

NOW = 10_000.0
HOSTILE = {
    "markup": "[red]x[/red] [/nothing] [link=file:///etc]",
    "escapes": "\x1b[31mred\x1b[2J\x1b[H\x1b]0;title\x07\x9b1A",
    "newlines": "a\nb\r\nc\rd\u2028e\x0b\x0c",
    "long": "y" * 10_000,
    "right to left": "\u202egnp.exe\u2066\u200f",
    "wide": "漢字" * 50,
    "emoji codes": ":smile: \U0001f600",
    "surrogate": "half \ud83d of a pair",
}
HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def board(**changes: Any) -> SweepProgress:
    counts = {"complete": 12, "diverged": 1, "running": 2, "waiting": 25}
    rows = {
        0: RunningTrial("t1", "r=8 attn 4bit", "cuda:0", NOW - 754, "training", 120, 300, 1.23456, 1234.5),
        1: RunningTrial("t2", "r=16 alpha=32 targets=all_linear 8bit seed=1", "cuda:1", NOW - 3754),
    }
    return SweepProgress(
        **{"name": "blog", "total": 40, "started": NOW - 9000, "counts": counts, "running": rows, **changes}
    )


def drawn(shown: SweepProgress, width: int, rows: int = 100) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=True, markup=True).print(
        draw_progress(shown, NOW, rows)
    )
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_table_80_columns_wide() -> None:
    assert drawn(board(seconds_left=840.0), 80) == [
        "sweep blog  12 of 40 done, 1 diverged, 25 waiting   about 14 min left",
        "━" * 26,
        "trial                       device phase       step           loss tok/s    time",
        "r=8 attn 4bit               cuda:0 training 120/300 ━━━      1.235 1,234   12:34",
        "r=16 alpha=32 targets=all_… cuda:1 starting       -              -     - 1:02:34",
    ]


def test_a_table_60_columns_wide_has_no_bars() -> None:
    assert drawn(board(seconds_left=840.0, counts={"complete": 12, "oom": 3, "waiting": 25}), 60) == [
        "sweep blog  12 of 40 done, 3 oom, 25 waiting",
        "about 14 min left",
        "━" * 22 + "╸",
        "trial            device phase       step  loss tok/s    time",
        "r=8 attn 4bit    cuda:0 training 120/300 1.235 1,234   12:34",
        "r=16 alpha=32 t… cuda:1 starting       -     -     - 1:02:34",
    ]


@pytest.mark.parametrize("width", [1, 5, 20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for text in HOSTILE.values():
        rows = {0: RunningTrial("t", text, text, NOW, text, 10**9, 10**9, 1e30, 1e12)}
        shown = board(name=text, running=rows, seconds_left=1e9)
        file = io.StringIO()
        console = Console(file=file, width=width, color_system=None, force_terminal=True)
        lines = console.render_lines(draw_progress(shown, NOW), pad=False)
        assert max(sum(segment.cell_length for segment in line) for line in lines) <= width


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_stays_in_its_cell(text: str) -> None:
    rows = {0: RunningTrial(text, text, text, NOW, text, 1, 2), 1: RunningTrial("t", "calm", "cpu", NOW)}
    lines = drawn(board(name=text, running=rows, counts={text: 1}), 200)
    assert len(lines) == 5, lines
    assert not HARMFUL.search("\n".join(lines))
    assert lines[4].startswith("calm")


def test_markup_is_shown_as_it_is_written() -> None:
    rows = {0: RunningTrial("t", "[red]x[/red]", "[b]0[/b]", NOW, "[i]1[/i]")}
    assert drawn(board(name="[u]2[/u]", running=rows), 120)[3].split()[:3] == ["[red]x[/red]", "[b]0[/b]", "[i]1[/i]"]
    assert drawn(board(name="[u]2[/u]"), 120)[0].startswith("sweep [u]2[/u]  12 of 40")


def test_rows_that_do_not_fit_are_counted() -> None:
    rows = {number: RunningTrial(str(number), f"trial {number}", "cpu", NOW) for number in range(12)}
    lines = drawn(board(running=rows), 80, rows=3)
    assert lines[-2].startswith("trial 2 ")
    assert lines[-1] == "and 9 more"


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((None, None, None), ["-", "-"]),
        ((7, None, 0.0), ["7", "0.000"]),
        ((9, 3, float("nan")), ["9/3", "-"]),
        ((0, 0, 123456.0), ["0/0", "1.23e+05"]),
        (("x", [], True), ["-", "1.000"]),
    ],
)
def test_numbers_that_are_unknown_or_odd(numbers: tuple[Any, Any, Any], said: list[str]) -> None:
    step, steps, loss = numbers
    rows = {0: RunningTrial("t", "one", "cpu", NOW, "training", step, steps, loss)}
    assert drawn(board(running=rows), 60)[-1].split()[3:5] == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (0.2, "about 1 s left"),
        (89, "about 89 s left"),
        (90, "about 2 min left"),
        (9000, "about 2.5 h left"),
    ],
)
def test_the_time_left_has_one_unit(seconds: float | None, said: str) -> None:
    assert (
        drawn(board(seconds_left=seconds), 100)[0]
        == f"sweep blog  12 of 40 done, 1 diverged, 25 waiting   {said}".rstrip()
    )
