"""What an orchestrator and a worker say to each other: a pack of jobs in, events out, a JSON line each.

A message is ``{"jobs": [job, ...]}``; an event about a trial has its ``trial_id`` and ``eval_id``. Imports no torch.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lora_sweep.config.schema import Config, Eval, Train, config_from_json

STAGES = ("train", "evaluate")


@dataclass(frozen=True)
class Job:
    """One trial to run, and what planning already knows about it.

    Attributes:
        facts: identity, fingerprints, trainable_params, total_params, data.
        stages: which of STAGES to run now, in order; one whose outcome is there is passed over.
        halvings: how often memory ran out in each stage, where that halves its batch.
        setbacks: how often a worker died over this trial.
    """

    trial_id: str
    eval_id: str
    kind: str
    label: str
    config: Config
    target_modules: list[str]
    facts: dict[str, Any]
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    halvings: dict[str, int] = field(default_factory=dict)
    setbacks: int = 0

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        return cls(**{**value, "config": config_from_json(value["config"])})

    @property
    def settings(self) -> Train:
        """The training's settings, with the same effective batch in smaller parts where memory ran out."""
        return with_halved_batch(self.config.train, self.halvings.get("train", 0))

    @property
    def decoding(self) -> Eval:
        """How texts are written, fewer at once where memory ran out."""
        settings = self.config.eval
        return dataclasses.replace(settings, batch_size=max(1, settings.batch_size >> self.halvings.get("evaluate", 0)))

    @property
    def ids(self) -> dict[str, str]:
        return {"trial_id": self.trial_id, "eval_id": self.eval_id, "kind": self.kind}


def with_halved_batch(train: Train, halvings: int) -> Train:
    """The same effective batch from smaller parts: an odd part is not halved."""
    for _ in range(halvings):
        if train.per_device_train_batch_size % 2:
            break
        size, parts = train.per_device_train_batch_size // 2, train.gradient_accumulation_steps * 2
        train = dataclasses.replace(train, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
    return train


@dataclass(frozen=True)
class Voice:
    """How a trial speaks while it runs.

    Attributes:
        tell: sends an event; any event counts as progress.
        stop: whether a signal asked to stop: then raise Preempted as soon as what is done is saved.
    """

    tell: Callable[[dict[str, Any]], None]
    stop: Callable[[], bool] = lambda: False

    def about(self, job: Job) -> "Voice":
        """The same, but each event says which trial it is about."""
        ids = {"trial_id": job.trial_id, "eval_id": job.eval_id}
        return dataclasses.replace(self, tell=lambda event: self.tell({**event, **ids}))

    def say(self, text: str) -> None:
        """A line for people."""
        self.tell({"event": "say", "text": text})

    def phase(self, name: str) -> None:
        """``loading``, ``training`` or ``writing``."""
        self.tell({"event": "phase", "phase": name})

    def step(self, step: int, steps: int, **numbers: float | None) -> None:
        """Progress within a phase, with ``loss`` and ``tokens_per_second`` where there are such."""
        self.tell({"event": "step", "step": step, "steps": steps, **numbers})


class Line(Protocol):
    """What a worker does with a pack of jobs: the straight line of ``lora_sweep.worker.trial``, or a script in a test.

    Each stage of each job writes its files, its result.json last, and raises whatever goes wrong with that job. What
    a pack does together, the line does in the first call of a stage, for whichever job; the calls for the others then
    save or raise what came of theirs. Where the common work itself fails the line raises Apart.
    """

    def together(self, jobs: list[Job], voices: list[Voice]) -> None:
        """Told before the first stage which jobs come in this pack, also of one. Does no work and raises nothing."""

    def train(self, job: Job, voice: Voice) -> None: ...

    def evaluate(self, job: Job, voice: Voice) -> None: ...

    def failed(self, job: Job, status: str, reason: str) -> None:
        """Told once, after a stage ended other than complete and its result was written.

        A job whose pack was taken apart has no result, and is told as ``preempted``: it goes on in another process.
        """

    def is_out_of_memory(self, error: BaseException) -> bool: ...
