"""The tracker's runs of a worker: opened at the first step, finished with the scores, and never left open."""

from pathlib import Path
from typing import Any

import pytest
from support.scripted import plan_of

from lora_sweep.messages import Failure, Job
from lora_sweep.worker import tracker_runs as module
from lora_sweep.worker.tracker_runs import TrackerRuns


class RecordingRun:
    """A run that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_step(self, step: int, values: dict[str, float]) -> None:
        self.calls.append((step, values))

    def fail(self, status: str, reason: str) -> None:
        self.calls.append((status, reason))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[RecordingRun]:
    """The runs that are opened, in order."""
    opened: list[RecordingRun] = []

    def open_run(self: TrackerRuns, job: Job) -> RecordingRun:
        opened.append(RecordingRun())
        return opened[-1]

    monkeypatch.setattr(module.TrackerRuns, "open_run", open_run)
    return opened


@pytest.fixture
def job(tmp_path: Path) -> Job:
    trial = plan_of(tmp_path, "a", 1).trials[0]
    facts: Any = {}
    return Job(trial.trial_id, trial.eval_id, "trial", "t0", trial.config, [], facts)


LOSSES = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_a_run_is_opened_at_the_first_step_and_taken_once(opened: list[RecordingRun], job: Job, tmp_path: Path) -> None:
    runs = TrackerRuns(tmp_path, "a")
    runs.log_step(job, 1, {"loss": 2.0})
    runs.log_step(job, 2, {"loss": 1.0})
    assert runs.take_run(job, LOSSES) is opened[0]
    assert opened[0].calls == [(1, {"loss": 2.0}), (2, {"loss": 1.0})], "the curve was shown twice"
    assert len(opened) == 1


def test_a_curve_that_was_not_shown_as_it_grew_is_shown_whole(
    opened: list[RecordingRun], job: Job, tmp_path: Path
) -> None:
    runs = TrackerRuns(tmp_path, "a")
    runs.log_step(job, 2, {"loss": 1.0})  # a training that went on from its checkpoint
    assert not opened
    runs.take_run(job, LOSSES)
    assert opened[0].calls == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]


def test_no_run_is_opened_for_a_training_whose_evaluation_is_in_another_process(
    opened: list[RecordingRun], job: Job, tmp_path: Path
) -> None:
    job.stages.remove("evaluate")
    TrackerRuns(tmp_path, "a").log_step(job, 1, {"loss": 2.0})
    assert not opened


def test_a_failure_ends_the_run_and_a_preemption_opens_none(
    opened: list[RecordingRun], job: Job, tmp_path: Path
) -> None:
    runs = TrackerRuns(tmp_path, "a")
    runs.mirror_failure(job, Failure("preempted", "stopped before it began; nothing is lost"))
    assert not opened
    runs.log_step(job, 1, {"loss": 2.0})
    runs.mirror_failure(job, Failure("preempted", "saved at step 1 of 4"))
    assert opened[0].calls[-1] == ("preempted", "saved at step 1 of 4")
    runs.mirror_failure(job, Failure("failed", "ValueError: broken"))
    assert opened[1].calls == [("failed", "ValueError: broken")]
