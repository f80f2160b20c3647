"""A kill at each named place of the code, and a disk that fails at each call: the same command goes on from there."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.faulty import Ended, run
from support.invariants import check, events_of, poll_gone
from support.scripted import plan_of

from lora_sweep.runs import files

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "lora_sweep").rglob("*.py"), *(ROOT / "sweep").rglob("*.py")]
NAMES = sorted({name for path in SOURCES for name in re.findall(r'crash_point\("([^"]+)"\)', path.read_text())})
TRIALS = 3

# What it takes to reach a place: a script, settings of launch, and what to do to the runs folder before.
FAILING = {"t1": "diverge"}
REACHED_BY: dict[str, dict[str, Any]] = {
    "before failure": {"script": FAILING},
    "failure forgotten": {"script": FAILING, "before": "run", "retry": "failed"},
    "before quarantine": {"before": "corrupt"},
    "quarantined": {"before": "corrupt"},
    "attempt failed": {"script": {"t1": "die"}},
    "failed attempt recorded": {"script": {"t1": "die"}},
}
LATER = [
    ("attempt failed", 3),
    ("failed attempt recorded", 3),
    ("outcome heard", 3),
    ("before job", 3),
    ("before unlock", 3),
]
LATER += [("written", 9), ("before rename", 8), ("renamed", 4), ("before append", 4), ("appended", 5)]
MANY = ("written", "before rename", "renamed", "before append", "appended", "lock written", "before unlock")
MAYBE = [(name, k) for name in MANY for k in range(2, 40) if (name, k) not in LATER]


def test_the_sources_have_crash_points() -> None:
    assert {*REACHED_BY, *MANY, *(name for name, _ in LATER)} <= set(NAMES)
    assert len(NAMES) >= 20


@pytest.mark.parametrize(
    ("name", "k", "pack"),
    [
        *((name, 1, 1) for name in NAMES),
        *(pytest.param(*point, 1, marks=pytest.mark.slow) for point in LATER),
        *(pytest.param(name, 1, 3, marks=pytest.mark.slow) for name in NAMES),
        *(pytest.param(*point, 1, marks=pytest.mark.crash) for point in MAYBE),
        *(pytest.param(name, k, 3, marks=pytest.mark.crash) for name in NAMES for k in (2, 3)),
    ],
)
def test_a_kill_at_a_crash_point(tmp_path: Path, name: str, k: int, pack: int) -> None:
    how = {"pack": pack, **REACHED_BY.get(name, {})}
    kill_and_go_on(tmp_path, name, k, how, is_certain=(name, k) not in MAYBE and pack == 1)


@pytest.mark.parametrize("name", ["attempt failed", "failed attempt recorded"])
def test_a_kill_while_a_pack_is_taken_apart(tmp_path: Path, name: str) -> None:
    how = {"script": {"together": "as the script says"}, "pack": 3}
    kill_and_go_on(tmp_path, name, 1, how, is_certain=True)


def kill_and_go_on(tmp_path: Path, name: str, k: int, how: dict[str, Any], is_certain: bool) -> None:
    """Run a sweep in which a process is killed at a crash point, and go on.

    Args:
        how: settings of launch, and what it takes to come to the crash point.
        is_certain: whether every run comes to the crash point ``k`` times; otherwise the test is skipped if not.
    """
    runs, flag = tmp_path / "home" / "runs", tmp_path / "flag"
    script, before = how.pop("script", {}), how.pop("before", None)
    if before:
        first = run(runs, "points", TRIALS, script)
        assert first.code in (0, 1), first.text
    if before == "corrupt":
        spoil(runs)
    story = [run(runs, "points", TRIALS, script, crash=f"{name}:{k}:{flag}", **how)]
    if not is_certain and not flag.exists():
        pytest.skip("so often it is not reached")
    assert flag.exists(), f"{name} was not reached {k} times:\n{story[0].text}"
    go_on(story, runs, script, finished=bool(script) and "together" not in script, **how)


def go_on(story: list[Ended], runs: Path, script: dict[str, Any], finished: bool, **settings: Any) -> None:
    """Check, run the same command to its end, and check again.

    Args:
        finished: whether trials end other than complete, so that the exit code stays 1.
    """
    plan = plan_of(runs, "points", TRIALS)
    try:
        check(runs, plan, finished=False)
        for path in runs.rglob("*.json"):
            assert files.read_json(path) is not None, f"{path} is half-written"
        trained = [path for path in runs.glob("trials/*/result.json") if files.read_json(path)["status"] == "complete"]
        before = {path.parent.name: (path.parent / "trainings").read_text() for path in trained}
        story.append(run(runs, "points", TRIALS, script, **settings))
        assert story[-1].code == finished
        check(runs, plan, finished=True)
        after = {name: (runs / "trials" / name / "trainings").read_text() for name in before}
        assert after == before, "what was trained was trained again"
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(f"--- {end.code}\n{end.text}" for end in story)])) from error


def spoil(runs: Path) -> None:
    """Change a byte of an adapter."""
    path = min((runs / "trials").glob("*/adapter/adapter.bin"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


# --- the disk ----------------------------------------------------------------------------------------------------

FULL, BROKEN = errno.ENOSPC, errno.EIO
# Which process's k-th call fails, how, and whether every later write does too.
CHOSEN: list[tuple[str, str, int, int, bool]] = [
    ("sweep", "mkdir", 1, FULL, False),
    ("sweep", "pwrite", 1, FULL, True),
    ("sweep", "mkstemp", 1, FULL, True),
    ("sweep", "write", 1, FULL, False),
    ("sweep", "replace", 1, BROKEN, False),
    ("sweep", "append", 2, FULL, True),
    ("sweep", "fsync", 6, BROKEN, False),
    ("sweep", "write", 3, FULL, True),
    ("worker", "pwrite", 1, FULL, True),
    ("worker", "open", 2, BROKEN, False),
    ("worker", "mkstemp", 2, FULL, True),
    ("worker", "write", 7, FULL, True),
    ("worker", "fsync", 9, BROKEN, False),
    ("worker", "replace", 8, BROKEN, True),
    ("sweep", "short", 5, FULL, False),
]
REST = [
    (who, call, k, number, lasting)
    for who in ("sweep", "worker")
    for call in ("open", "mkstemp", "write", "append", "short", "pwrite", "fsync", "replace", "mkdir")
    for k in range(1, 12)
    for number, lasting in ((FULL, False), (FULL, True), *([(BROKEN, False)] if call in ("open", "fsync") else []))
]


@pytest.mark.parametrize(
    ("who", "call", "k", "number", "lasting"),
    [*CHOSEN, *(pytest.param(*call, marks=pytest.mark.crash) for call in REST if call not in CHOSEN)],
)
def test_a_call_that_fails(tmp_path: Path, who: str, call: str, k: int, number: int, lasting: bool) -> None:
    runs, flag = tmp_path / "home" / "runs", tmp_path / "flag"
    script = {"t1": "die once"} if call in ("append", "short") else {}
    fault = {"in": who, "call": call, "at": k, "errno": number, "lasting": lasting, "flag": str(flag)}
    story = [run(runs, "points", TRIALS, script, fault=fault)]
    if not flag.exists():
        pytest.skip("so often it is not called")
    assert story[0].code in (0, 75) or "cannot be written" in story[0].text, story[0].text
    assert not poll_gone(runs)
    if story[0].code == 75:
        assert "nothing can be written" in story[0].text
        assert "python -m lora_sweep.train" in story[0].text
    assert "Traceback" not in story[0].text
    if story[0].code == 0:  # nobody was killed while it wrote: no line is torn, and none is lost
        for path in runs.rglob("*.jsonl"):
            assert [json.loads(line) for line in path.read_text().splitlines()]
        deaths = [event for event in events_of(runs, "points") if event["event"] == "death"]
        assert len(deaths) == bool(script)
    go_on(story, runs, script, finished=False)
