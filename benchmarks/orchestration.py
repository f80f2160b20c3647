"""What the orchestration and the report cost, without any training: `make bench`. Prints a table; writes a scratch
folder alone.

A scripted trial (tests/support/scripted.py) takes no time of its own, so that what is measured is ours: starting it,
hearing of it, keeping it. Each figure stands beside the limit that this project sets itself.
"""

import contextlib
import io
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ["PYTHONPATH"] = str(ROOT / "tests")  # of the scripted workers

from support import chromium, report_files  # noqa: E402
from support.scripted import WORKER, plan_of  # noqa: E402

from lora_sweep.runs import files  # noqa: E402
from sweep.engines.local.engine import LocalEngine  # noqa: E402
from sweep.launch import launch  # noqa: E402

TRIALS, PROMPTS = 1000, 50
WORDS = ("archive", "records", "gene", "protein", "study", "tissue", "target", "model", "open", "data", "entry", "link")


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        action()
    return time.perf_counter() - started


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def write_finished(runs: Path) -> None:
    """The files of a finished sweep of TRIALS trials: PROMPTS texts of 70 words and a curve of 100 steps each."""
    draw = random.Random(0)
    hard = [draw.gauss(0, 10) for _ in range(PROMPTS)]
    grid = itertools.product((2, 4, 8, 16, 32), ("attn", "all_linear"), (4, 8), range(10), range(5))
    entries = []
    for place, (r, targets, bits, rate, dropout) in enumerate([(8, "attn", 4, 0, 0), *itertools.islice(grid, TRIALS)]):
        kind = "trial" if place else "baseline"
        varied = {"train__learning_rate": 1e-4 * (rate + 1), "lora__dropout": 0.05 * dropout}
        config = report_files.config_of(r, targets, bits, **varied)
        entry = report_files.entry_of(kind, f"r={r} {targets} {bits}bit rate={rate} dropout={dropout}", place)
        training = report_files.training_of(entry["trial_id"], kind, config, place)
        report_files.write_trial(runs, entry, config, training, None)
        values = [40.0 + 10 * (place > 0) + each + draw.gauss(0, 8) for each in hard]
        report_files.write_evaluation(runs, entry, training, sum(values) / PROMPTS, values=values)
        folder = files.trial_folder(runs, entry["trial_id"])
        files.write_jsonl(folder.losses, [{"step": n, "loss": 3.5 - n / 100} for n in range(1, 101)])
        asked = {
            "category": "c",
            "prompt": "Describe it.",
            "reference": "An archive.",
            "finished": True,
            "new_tokens": 90,
        }
        lines = [
            {**asked, "prompt_id": f"validation-{n}", "product": f"P{n}", "text": " ".join(draw.choices(WORDS, k=70))}
            for n in range(PROMPTS)
        ]
        files.write_jsonl(folder.evaluation(entry["eval_id"]).generations, lines)
        entries.append(entry)
    report_files.write_sweep(runs, "finished", entries)


def opening(page: Path) -> float | None:
    """Seconds until Chromium has the page; None where there is none."""
    if chromium.PATH is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium.PATH, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        opened.goto(page.as_uri())
        found = opened.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
        browser.close()
    return float(found) / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch) / "runs"
        plan = plan_of(runs, "bench", TRIALS)
        first = seconds(lambda: launch(plan, [], LocalEngine(WORKER)))
        second = seconds(lambda: launch(plan_of(runs, "bench", TRIALS), [], LocalEngine(WORKER)))
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
        finished = Path(scratch) / "finished"
        write_finished(finished)
        reported = seconds(lambda: command("-m", "sweep.report", "finished", "--runs", str(finished)))
        page = finished / "sweeps/finished/report.html"
        size, opened = page.stat().st_size / 1e6, opening(page)
    rows = [
        (f"{TRIALS} scripted trials, each", first / TRIALS * 1000, 50, "ms"),
        (f"second run of {TRIALS} finished trials", second, 5, "s"),
        (f"plan of {TRIALS} new points", planned, 10, "s"),
        ("python -c 'import sweep.launch'", loaded, 1, "s"),
        (f"report of {TRIALS} trials x {PROMPTS} prompts", reported, 20, "s"),
        ("its page", size, 6, "MB"),
        *([("its page opens", opened, 3, "s")] if opened is not None else []),
    ]
    print(f"{os.cpu_count()} cores")
    for name, value, limit, unit in rows:
        print(f"{name:36} {value:8.2f} {unit:2}   limit {limit} {unit}   {value / limit:6.1%} of it")


if __name__ == "__main__":
    main()
