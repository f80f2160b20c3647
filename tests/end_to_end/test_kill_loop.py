"""Whatever is killed, and whenever: the same command goes on, and nothing that was acknowledged is lost."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.faulty import ended, poll, run, start
from support.invariants import check, children, workers_of
from support.scripted import plan_of

TRIALS = 6
SCRIPT = {"ms": 40}
FAST, SLOW, ALL = 6, 20, 200  # so many seeds in make test, in make test-slow too, in make test-crash too


@pytest.mark.parametrize(
    "seed",
    [
        *range(FAST),
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(FAST, SLOW)),
        *(pytest.param(seed, marks=pytest.mark.crash) for seed in range(SLOW, ALL)),
    ],
)
def test_a_sweep_survives_kills_at_any_moment(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    runs = tmp_path / "home" / "runs"
    workers = chance.choice([1, 1, 2])
    how: dict[str, Any] = {"workers": workers, "pack": ("auto", 1, 2)[seed % 3]}
    plan = plan_of(runs, "loop", TRIALS)
    story = [f"seed {seed}, {how}"]
    for _ in range(chance.randint(1, 3)):
        sweep = start(runs, "loop", TRIALS, SCRIPT, **how)
        if chance.random() < 0.8:  # else while it starts
            poll(lambda sweep=sweep: workers_of(sweep.pid) or sweep.poll() is not None)
        time.sleep(chance.uniform(0, 0.6))
        whom = chance.choice(["sweep", "worker", "guard", "both"])
        story.append(f"{whom} killed")
        for pid in victims(sweep.pid, whom, chance):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        done = ended(sweep)
        story.append(f"ended with {done.code}: {done.text}")
        assert done.code in (0, 1, -signal.SIGKILL), "\n".join(story)
        check_with(story, runs, plan, finished=done.code in (0, 1))
    done = run(runs, "loop", TRIALS, SCRIPT, **how)
    if done.code == 1:  # three kills hit the same trial
        assert "killed" in done.text, "\n".join([*story, done.text])
        done = run(runs, "loop", TRIALS, SCRIPT, **how, retry="failed")
    assert done.code == 0, "\n".join([*story, done.text])
    check_with(story, runs, plan, finished=True)


def victims(sweep: int, whom: str, chance: random.Random) -> list[int]:
    """Process ids to be killed, in this order: a worker's guard is its child."""
    workers = workers_of(sweep)
    worker = [chance.choice(workers)] if workers else []
    if whom == "guard":
        return [guard for pid in worker for guard in children(pid)]
    return {"sweep": [sweep], "worker": worker, "both": [sweep, *worker]}[whom]


def check_with(story: list[str], *arguments: object, **more: object) -> None:
    try:
        check(*arguments, **more)  # type: ignore[arg-type]
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *story])) from error
