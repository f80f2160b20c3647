"""What a sweep is doing at this moment: the trials by status, and those that run. Plain data; knows no terminal."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Running:
    """One trial under way. ``started`` is in seconds of time.time(); numbers are None until they are known."""

    trial_id: str
    label: str
    device: str
    started: float
    phase: str = "starting"  # loading, training, writing
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None


@dataclass
class Board:
    """A sweep under way.

    Attributes:
        counts: trials and baselines by status; ``waiting`` and ``running`` among them. They add up to ``total``.
        running: by the trial's key, or by any other that is each row's own; those of a worker stand together.
        seconds_left: an estimate from the trials that have ended in this run; None before the first has.
    """

    name: str
    total: int
    started: float
    counts: dict[str, int] = field(default_factory=dict)
    running: dict[Any, Running] = field(default_factory=dict)
    seconds_left: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "running": [dataclasses.asdict(each) for each in self.running.values()]}
