"""How far a sweep is: the number of trials with each status, and the running trials. Plain data."""

import dataclasses
from dataclasses import dataclass, field

from sweep.trials import Key


@dataclass
class RunningTrial:
    """A trial that a worker runs now.

    Attributes:
        started: when its worker got it, in seconds of time.time().
        phase: ``starting``, ``loading``, ``training`` or ``writing``.
        step, steps: steps that are done, and steps in total; None until they are known, like the other numbers.
        loss: of the last step.
    """

    trial_id: str
    label: str
    device: str
    started: float
    phase: str = "starting"
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None


@dataclass
class SweepProgress:
    """The progress of a running sweep.

    Attributes:
        name: of the sweep.
        total: how many trials and baselines it has.
        started: when this run of the sweep started, in seconds of time.time().
        counts: how many trials and baselines have each status, ``waiting`` and ``running`` included.
        running: the running trials by key, or by a number if the key is unknown. Members of a pack are neighbours.
        seconds_left: an estimate from the trials that ended in this run; None before the first one has ended.
    """

    name: str
    total: int
    started: float
    counts: dict[str, int] = field(default_factory=dict)
    running: dict[Key | int, RunningTrial] = field(default_factory=dict)
    seconds_left: float | None = None

    def to_json(self) -> dict[str, object]:
        """The content of progress.json."""
        return {**dataclasses.asdict(self), "running": [dataclasses.asdict(row) for row in self.running.values()]}
