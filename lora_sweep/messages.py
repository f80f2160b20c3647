"""The messages between an orchestrator and its workers, and what a worker's process asks of its runner.

A worker reads one JSON line for each pack, ``{"jobs": [job, ...]}``, and ``{"end": true}`` after the last. It writes
one JSON line for each event; an event about a trial holds ``trial_id`` and ``eval_id``. Imports no torch.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from lora_sweep.config.schema import Config, Eval, Train, config_from_json

STAGES = ("train", "evaluate")
Event = dict[str, str | int | float | None]


class PlannedFacts(TypedDict):
    """What planning knows about a trial. The trial's result.json repeats it."""

    identity: dict[str, object]  # its hash names the trial's folder
    fingerprints: dict[str, str]  # of the model and the data
    targets: str | list[str] | None  # lora.targets, as configured; None for a baseline
    target_modules: list[str]
    trainable_params: int
    total_params: int
    data: dict[str, object]  # the numbers of rows and tokens, and the hash of the rows


@dataclass(frozen=True)
class Job:
    """One trial to run, with what planning knows about it.

    Attributes:
        stages: the names from STAGES to run now, in this order. A stage that already has a result is skipped.
        halvings: stage: how often its batch size was halved because memory ran out.
        failed_attempts: how many workers died while they ran this trial.
    """

    trial_id: str
    eval_id: str
    kind: str  # trial or baseline
    label: str
    config: Config
    target_modules: list[str]
    facts: PlannedFacts
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    halvings: dict[str, int] = field(default_factory=dict)
    failed_attempts: int = 0

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Job":
        return cls(**{**content, "config": config_from_json(content["config"])})

    @property
    def train_settings(self) -> Train:
        """The settings of the training. Where memory ran out, the same effective batch is split into smaller parts."""
        return halve_batch(self.config.train, self.halvings.get("train", 0))

    @property
    def eval_settings(self) -> Eval:
        """The settings of the evaluation. Where memory ran out, fewer texts are generated at once."""
        settings = self.config.eval
        batch_size = settings.batch_size >> self.halvings.get("evaluate", 0)
        return dataclasses.replace(settings, batch_size=max(1, batch_size))

    @property
    def ids(self) -> dict[str, str]:
        return {"trial_id": self.trial_id, "eval_id": self.eval_id, "kind": self.kind}


def halve_batch(train: Train, halvings: int) -> Train:
    """Halve the batch of one device and double the accumulation steps, ``halvings`` times or until the batch is odd."""
    for _ in range(halvings):
        if train.per_device_train_batch_size % 2:
            break
        batch_size, accumulation_steps = train.per_device_train_batch_size // 2, train.gradient_accumulation_steps * 2
        train = dataclasses.replace(
            train, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation_steps
        )
    return train


@dataclass(frozen=True)
class Failure:
    """How a stage of a trial ended when it did not complete.

    Attributes:
        status: ``diverged``, ``preempted``, ``oom`` or ``failed``.
        reason: why, in words.
    """

    status: str
    reason: str


@dataclass(frozen=True)
class Reporter:
    """How a running trial reports its progress, and learns that it has to stop.

    Attributes:
        send_event: sends an event to the orchestrator. Any event tells it that the worker is alive.
        is_stop_requested: tells whether a signal asked the worker to stop. The trial then saves and raises Preempted.
        capture_output: makes a context in which everything that the process prints goes to the log of the trial.
    """

    send_event: Callable[[Event], None]
    is_stop_requested: Callable[[], bool] = lambda: False
    capture_output: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def bind_job(self, job: Job, capture_output: Callable[[], AbstractContextManager[None]]) -> "Reporter":
        """The same reporter for one trial: its events hold the trial's ids, and its texts go to the trial's log."""
        ids: Event = {"trial_id": job.trial_id, "eval_id": job.eval_id}
        return Reporter(lambda event: self.send_event({**event, **ids}), self.is_stop_requested, capture_output)

    def report_text(self, text: str) -> None:
        """Report a line for people."""
        with self.capture_output():
            self.send_event({"event": "say", "text": text})

    def report_phase(self, phase: str) -> None:
        """Report that a phase begins: ``loading``, ``training`` or ``writing``."""
        self.send_event({"event": "phase", "phase": phase})

    def report_step(self, step: int, steps: int, **numbers: float | None) -> None:
        """Report that ``step`` of ``steps`` is done, with ``loss`` and ``tokens_per_second`` where they are known."""
        self.send_event({"event": "step", "step": step, "steps": steps, **numbers})


class Runner(Protocol):
    """Runs the stages of a pack of jobs. ``lora_sweep.worker.pack`` trains models; in a test, a script takes its place.

    ``train`` and ``evaluate`` run one stage. They yield each job once, as soon as its stage has ended: with None when
    its result.json is written, else with its failure. An exception that leaves the iterator is a failure of the work
    that the jobs do together: it ends the stage of every job that was not yielded before.
    """

    def train(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]: ...

    def evaluate(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]: ...

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        """Show a failure in the tracker. Called once, after the failure is written.

        A job of a pack that was split has no result yet: it is shown as ``preempted`` and runs in another process.
        """

    def is_out_of_memory(self, error: BaseException) -> bool: ...
