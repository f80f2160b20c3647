"""A worker whose trials are scripts instead of trainings; a program, which loads neither torch nor the orchestrator.

SCRIPT, a JSON object in the environment, says by a trial's label what the trial does: see :func:`act`. ``"*"`` stands
for all labels, ``"ms"`` is the time that a stage takes, and ``"together"`` is the error of the common work of a pack of
several.
"""

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

from lora_sweep.errors import Diverged, Preempted
from lora_sweep.messages import Failure, Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.worker import loop
from lora_sweep.worker.outcomes import attempt_step

STEPS = 4  # of a scripted training: it can stop, and go on, at each


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


if __name__ == "__main__":
    del sys.argv[1]  # the word "worker"
    loop.main(ScriptedRunner)
