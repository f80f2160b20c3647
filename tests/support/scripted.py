"""Sweeps whose trials are scripts instead of trainings, for the tests that need a thousand of them or many deaths.

Everything but the trial is real: the orchestrator, its workers, their locks, files and signals. Each is a process:
``python tests/support/scripted.py sweep RUNS NAME COUNT [KEY=VALUE of launch ...]`` starts
``python tests/support/scripted.py worker RUNS SWEEP``. SCRIPT, a JSON object in the environment, holds for a trial's
label what the trial does: see :func:`act`. ``"*"`` stands for all labels, ``"ms"`` is the time that a stage takes, and
``"together"`` is the error of the common work of a pack of several. Each trial runs alone unless ``pack`` is set.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import short_hash
from lora_sweep.config.schema import Config, Data, Launch, Model, Tracking, Train
from lora_sweep.errors import Diverged, Preempted
from lora_sweep.facts.facts import DataFacts, Facts, Linear, ModelFacts
from lora_sweep.facts.memory import MemoryForecast
from lora_sweep.messages import STAGES, Failure, Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.worker import loop
from lora_sweep.worker.outcomes import attempt_step
from sweep.engines.job import make_job
from sweep.engines.local.engine import LocalEngine
from sweep.engines.pending import PendingTrial
from sweep.launch import launch
from sweep.trials import Plan, PlannedTrial

HERE = Path(__file__)
WORKER = (sys.executable, str(HERE), "worker")
STEPS = 4  # of a scripted training: it can stop, and go on, at each


def plan_of(runs: Path, name: str, count: int, **settings: Any) -> Plan:
    """``count`` trials t0, t1, ... that a script can run; the same count gives the same ids."""
    model = ModelFacts(
        "model-1", "llama", [Linear("q_proj", 8, 8, False)], ["q_proj"], [], None, False, 64, 0, 8, 1, 16
    )
    data = DataFacts("data-1", "rows-1", rows_read=8, train_rows=4, validation_rows=2, test_rows=2, train_tokens=64)
    facts = Facts(model, data, 4)
    trials = []
    for number in range(count):
        config = Config(
            model=Model(name="scripted", tiny="llama"),
            data=Data(name="scripted", tiny=8),
            train=Train(max_steps=STEPS),
            tracking=Tracking(backend="none"),
            launch=Launch(**{"pack": 1, **settings}),
            seed=number,
            runs_dir=str(runs),
            sweep_name=name,
        )
        identity = {"kind": "trial", "model": "model-1", "quant": {}, "data": {}, "seed": number}
        forecast = MemoryForecast(0, 0, 0, 0)
        trials.append(
            PlannedTrial(
                short_hash(identity), "e0", "trial", f"t{number}", config, facts, ["q_proj"], 32, forecast, identity
            )
        )
    return Plan(trials, [trial.key for trial in trials], ["seed"])


def job_json(trial: PlannedTrial, **changes: Any) -> dict[str, Any]:
    """The JSON of a job for all stages of a trial, as a worker reads it."""
    job = make_job(PendingTrial(trial), [])
    values = dataclasses.asdict(dataclasses.replace(job, **{"stages": list(STAGES), **changes}))
    parsed: dict[str, Any] = json.loads(json.dumps(values))
    return parsed


class ScriptedRunner:
    """A ``messages.Runner``: writes the files that a training would, with a content that the seed alone decides."""

    def __init__(self, runs: Path, sweep: str) -> None:
        self.runs = runs
        self.script = json.loads(os.environ.get("SCRIPT", "{}"))

    def train(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]:
        if "together" in self.script and len(jobs) > 1:
            raise RuntimeError(self.script["together"])
        for job, reporter in zip(jobs, reporters, strict=True):
            yield job, attempt_step(partial(self.train_one, job, reporter), reporter, self.is_out_of_memory)

    def evaluate(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]:
        for job, reporter in zip(jobs, reporters, strict=True):
            yield job, attempt_step(partial(self.evaluate_one, job, reporter), reporter, self.is_out_of_memory)

    def train_one(self, job: Job, reporter: Reporter) -> None:
        folder = files.trial_folder(self.runs, job.trial_id)
        files.write_json(
            folder.config, {"trial_id": job.trial_id, "kind": job.kind, "config": {"seed": job.config.seed}}
        )
        act(self.find_action(job), job, folder)
        reporter.report_phase("training")
        saved = folder.checkpoints / "checkpoint-1" / "step"
        first = int(saved.read_text()) if saved.exists() else 0
        for step in range(first + 1, STEPS + 1):
            time.sleep(self.script.get("ms", 0) / 1000 / STEPS)
            reporter.report_step(step, STEPS, loss=1 / step)
            files.write_atomic(saved, str(step).encode())
            if reporter.is_stop_requested() and step < STEPS:
                raise Preempted(f"saved at step {step} of {STEPS}")
        files.write_jsonl(folder.losses, [{"step": step, "loss": 1 / step} for step in range(1, STEPS + 1)])
        files.write_atomic(folder.adapter / "adapter.bin", random.Random(job.config.seed).randbytes(2048))
        hashes = files.hash_files(folder.path, ["config.json", "losses.jsonl", "adapter"])
        result = {"trial_id": job.trial_id, "kind": job.kind, "status": "complete", "reason": None, **job.facts}
        results.write_result(
            folder.result, {**result, "setbacks": job.failed_attempts, "halved": job.halvings, "files": hashes}
        )
        saved.unlink()
        saved.parent.rmdir()
        folder.checkpoints.rmdir()

    def evaluate_one(self, job: Job, reporter: Reporter) -> None:
        folder, action = files.trial_folder(self.runs, job.trial_id), self.find_action(job)
        act(action.removeprefix("evaluate "), job, folder, "evaluate " in action)
        evaluation = folder.evaluation(job.eval_id)
        reporter.report_phase("writing")
        if reporter.is_stop_requested():
            raise Preempted("during generation; the adapter is saved")
        scores = {"prompts": [], "means": {"quality": float(job.config.seed)}, "references": {}}
        files.write_jsonl(evaluation.generations, [{"prompt_id": "validation-0", "text": f"text {job.config.seed}"}])
        files.write_json(evaluation.scores, scores)
        result = {"eval_id": job.eval_id, "status": "complete", "reason": None, "metrics": scores["means"]}
        result["adapter"] = results.hash_adapter(results.read_trial_result(folder))
        hashes = files.hash_files(evaluation.path, ["generations.jsonl", "scores.json"])
        results.write_result(evaluation.result, {**result, "files": hashes})

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        pass

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def find_action(self, job: Job) -> str:
        return str(self.script.get(job.label, self.script.get("*", "")))


def act(action: str, job: Job, folder: files.TrialFolder, is_now: bool = True) -> None:
    """Do what a script says: fail, diverge, oom, die, die once, exit, hang, disk, spawn (a grandchild); or nothing."""
    if not is_now or action.startswith("evaluate "):
        return
    if action == "fail":
        raise ValueError("as the script says")
    if action == "diverge":
        raise Diverged("loss is nan at step 2 of 4")
    if action == "oom" or (action.startswith("oom until ") and sum(job.halvings.values()) < int(action.split()[-1])):
        raise MemoryError("as the script says")
    if action == "die" or (action == "die once" and not job.failed_attempts):
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(3)
    if action == "hang":
        time.sleep(3600)
    if action == "disk":
        raise OSError(28, "No space left on device")
    if action == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        (folder.path / "grandchild").write_text(str(child.pid))
        time.sleep(3600)


def main() -> None:
    if sys.argv[1] == "worker":
        del sys.argv[1]
        loop.main(ScriptedRunner)
    _, _, runs, name, count, *settings = sys.argv
    values = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in settings)}
    outcomes = launch(plan_of(Path(runs), name, int(count), **values), sys.argv[2:], LocalEngine(WORKER))
    sys.exit(any(outcome.status != "complete" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
