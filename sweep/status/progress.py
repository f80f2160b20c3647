"""How far a sweep is: its trials by status, and the trials that run. Plain data that knows no terminal."""

import dataclasses
from dataclasses import dataclass, field

from sweep.trials import Key


@dataclass
class RunningTrial:
    """One trial under way. ``started`` is in seconds of time.time(); a number is None until it is known."""

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
class SweepProgress:
    """A sweep under way.

    Attributes:
        name: of the sweep.
        started: when it was started, in seconds of time.time().
        counts: trials and baselines by status, which includes ``waiting`` and ``running``. They add up to ``total``.
        running: by the trial's key, or by a number where the key is unknown; trials of one worker are neighbours.
        seconds_left: an estimate from the trials that have ended in this run; None before the first has.
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
