"""A plan to outcomes: worker processes, one after another, each for the trials that share a base.

Imports no torch. What happened is read from the trials' files; a worker's exit code only says ended or crashed.
"""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_sweep import results, tracking
from lora_sweep.identity import base_identity, canonical
from sweep import store
from sweep.plan_table import plan_table
from sweep.trials import Key, Plan, Planned

WORKER_ENVIRONMENT = {
    # glibc gives buffers of a step back to the system, and asks for them again at the next: 15-25 % of a CPU step.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def launch(plan: Plan, arguments: list[str]) -> dict[Key, results.TrialResult]:
    """Run what is left of the plan, write and print the report, and return every trial's result.

    Args:
        arguments: of the command, for the record and to print the line that goes on after an interruption.
    """
    from sweep.report import write_report

    runs = Path(plan.trials[0].config.runs_dir)
    name = store.sweep_name(plan)
    command = shlex.join(["python", "-m", "lora_sweep.train", *arguments])
    todo = store.unfinished(plan, runs)
    print(plan_table(plan, runs, name))
    store.write_sweep(plan, runs, name, command)
    store.clear_failures(todo, runs)
    try:
        for number, pack in enumerate(packs(todo), start=1):
            run_pack(pack, runs, name, results.report_folder(runs, name) / f"worker-{number}.log")
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished trials are kept. Go on with:\n  {command}", flush=True)
        raise
    print(write_report(runs, name))
    outcomes = {trial.key: results.load_result(runs, *trial.key, trial.label) for trial in plan.trials}
    if any(result.status != "complete" for result in outcomes.values()):
        print(f"not everything is complete; the workers' logs: {results.report_folder(runs, name)}/worker-*.log")
    if todo:
        mirror(plan, runs, name, command)
    return outcomes


def mirror(plan: Plan, runs: Path, name: str, command: str) -> None:
    """The sweep's own run, and the line that uploads what was written offline."""
    from sweep.report.table import load_sweep

    settings = plan.trials[0].config.tracking
    tracking.log_sweep(settings, runs, name=name, command=command, rows=load_sweep(runs, name).rows)
    line = tracking.sync_line(settings, runs)
    if line:
        print(f"W&B: offline. To upload: {line}")


def packs(trials: list[Planned]) -> list[list[Planned]]:
    """The trials grouped by what a worker loads for them, in order of first appearance; baselines first."""
    groups: dict[str, list[Planned]] = {}
    for trial in trials:
        base = base_identity(trial.config, trial.facts.model.fingerprint, trial.facts.data.fingerprint)
        base["data"].pop("template")
        key = canonical([base, trial.config.eval_bits(), dataclasses.asdict(trial.config.model)])
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


def run_pack(pack: list[Planned], runs: Path, name: str, log: Path) -> None:
    """Run workers until every trial of the pack has an outcome; a crash is the outcome of the trial it hit."""
    log.parent.mkdir(parents=True, exist_ok=True)
    left = pack
    while left:
        code = run_worker(left, runs, name, log)
        after = [trial for trial in left if not has_outcome(trial, runs)]
        if code != 0 and after:
            hit = struck(after, runs)
            write_crash(hit, runs, code, log)
            after.remove(hit)
        elif len(after) == len(left):
            raise RuntimeError(f"a worker ended without an outcome for any of {len(left)} trials; see {log}")
        left = after


def has_outcome(trial: Planned, runs: Path) -> bool:
    return results.load_result(runs, *trial.key).status is not None


def struck(left: list[Planned], runs: Path) -> Planned:
    """The trial that a worker was at: the first left, or, where all train before any generates, the first untrained."""
    if any(trial.config.eval_bits() != trial.config.quant.bits for trial in left):
        untrained = [t for t in left if not results.trial_folder(runs, t.trial_id).result.exists()]
        return (untrained or left)[0]
    return left[0]


def run_worker(
    pack: list[Planned],
    runs: Path,
    name: str,
    log: Path,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> int:
    """One worker process over ``pack``; its lines are printed with the time since its start. Returns its exit code."""
    jobs = [as_job(trial) for trial in pack]
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as errors:
        request = Path(folder) / "pack.json"
        request.write_text(json.dumps({"runs_dir": str(runs), "sweep": name, "jobs": jobs}))
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "lora_sweep.worker", str(request)],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": first_gpu()},
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    say(f"{time.monotonic() - started:6.0f} s  {line.rstrip()}")
                return process.wait()
            finally:
                process.kill()


def first_gpu() -> str:
    """The one GPU that a worker sees: TRL refuses to train on several from one process. Means nothing without one."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def as_job(trial: Planned) -> dict[str, Any]:
    """A trial as ``lora_sweep.worker`` reads it."""
    facts = trial.facts
    return {
        "trial_id": trial.trial_id,
        "eval_id": trial.eval_id,
        "kind": trial.kind,
        "label": trial.label,
        "config": dataclasses.asdict(trial.config),
        "target_modules": trial.target_modules,
        "facts": {
            "identity": trial.identity,
            "fingerprints": {"model": facts.model.fingerprint, "data": facts.data.fingerprint},
            "targets": trial.config.lora.targets if trial.kind == "trial" else None,
            "target_modules": trial.target_modules,
            "trainable_params": trial.trainable_params,
            "total_params": facts.model.total_params,
            "data": dataclasses.asdict(facts.data),
        },
    }


def write_crash(trial: Planned, runs: Path, code: int, log: Path) -> None:
    """The outcome of the trial during which a worker died."""
    status = "killed" if code < 0 else "failed"
    what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    reason = f"the worker process ended with {what}; see {log.parent.name}/{log.name}"
    job = as_job(trial)
    ids = {key: job[key] for key in ("trial_id", "eval_id", "kind")}
    results.write_failure(runs, ids, job["config"], job["facts"], status, reason)
    print(f"{trial.label}: {status}: {reason}", flush=True)
