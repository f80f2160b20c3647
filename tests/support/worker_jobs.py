"""Jobs of scripted trials as a worker reads them."""

from pathlib import Path
from typing import Any

from support.scripted import job_json, plan_of
from support.scripted_worker import ScriptedRunner

from lora_sweep.messages import Failure, Job, Reporter
from lora_sweep.worker import loop
from sweep.trials import PlannedTrial


def plan_trial(runs: Path, number: int = 0) -> PlannedTrial:
    return plan_of(runs, "a", number + 1).trials[number]


def read_job(runs: Path, number: int = 0, **more: Any) -> Job:
    return Job.from_json(job_json(plan_trial(runs, number), **more))


def as_jobs(runs: Path, count: int = 1) -> dict[str, Any]:
    """The message that gives a worker a pack of so many trials."""
    return {"jobs": [job_json(plan_trial(runs, number)) for number in range(count)]}


class FailingRunner(ScriptedRunner):
    """A script whose stages can be made to raise."""

    def __init__(self, runs: Path, train: BaseException | None = None, evaluate: BaseException | None = None) -> None:
        super().__init__(runs, "a")
        self.errors = {"train": train, "evaluate": evaluate}
        self.mirrored: list[Failure] = []

    def train_one(self, job: Job, reporter: Reporter) -> None:
        if self.errors["train"]:
            raise self.errors["train"]
        super().train_one(job, reporter)

    def evaluate_one(self, job: Job, reporter: Reporter) -> None:
        if self.errors["evaluate"]:
            raise self.errors["evaluate"]
        super().evaluate_one(job, reporter)

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        self.mirrored.append(failure)


def run_trial(runs: Path, runner: FailingRunner, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return loop.run_pack([read_job(runs, **more)], runs, runner, Reporter(events.append))[0], events
