"""What the orchestration costs, without any training: `make bench`. Prints a table; writes a scratch folder alone.

A scripted trial (tests/scripted.py) takes no time of its own, so that what is measured is ours: starting it, hearing
of it, keeping it. Each figure stands beside the limit that this project sets itself.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from scripted import WORKER, plan_of  # noqa: E402

from sweep.launch import launch  # noqa: E402

TRIALS = 1000


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        action()
    return time.perf_counter() - started


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch) / "runs"
        plan = plan_of(runs, "bench", TRIALS)
        first = seconds(lambda: launch(plan, [], WORKER))
        second = seconds(lambda: launch(plan_of(runs, "bench", TRIALS), [], WORKER))
        ranks, rates = ",".join(map(str, range(1, 21))), ",".join(f"{n}e-4" for n in range(1, 51))
        swept = [
            f"lora.r={ranks}",
            f"train.learning_rate={rates}",
            "model=tiny",
            "data=tiny",
            f"runs_dir={scratch}/none",
        ]
        command("-m", "sweep.plan", "-m", *swept[:1], *swept[2:])  # what the model looks like is known from here on
        planned = seconds(lambda: command("-m", "sweep.plan", "-m", *swept))
        loaded = seconds(lambda: command("-c", "import sweep.launch"))
    rows = [
        (f"{TRIALS} scripted trials, each", first / TRIALS * 1000, 50, "ms"),
        (f"second run of {TRIALS} finished trials", second, 5, "s"),
        (f"plan of {TRIALS} new points", planned, 10, "s"),
        ("python -c 'import sweep.launch'", loaded, 1, "s"),
    ]
    print(f"{os.cpu_count()} cores")
    for name, value, limit, unit in rows:
        print(f"{name:36} {value:8.2f} {unit:2}   limit {limit} {unit}   {value / limit:6.1%} of it")


if __name__ == "__main__":
    main()
