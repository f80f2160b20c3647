"""What a training has done so far, what a checkpoint keeps of that, and how a training ends."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_sweep.errors import Diverged, Preempted

StepValues = dict[str, float]  # loss, learning_rate, grad_norm and epoch of one optimizer step
OnStep = Callable[[int, int, StepValues], None]  # called with the step, the number of planned steps, and its values


@dataclass
class Progress:
    """What a checkpoint holds beside the adapter and the optimizer's state.

    Attributes:
        losses: the values of each step, in order, with the key ``step``.
        tokens: tokens of the rows seen so far, without padding.
        train_seconds: seconds spent in the steps so far.
        epoch_rng: the state of torch's random generator at the start of the epoch, in hex; only TRL's training sets it.
    """

    losses: list[StepValues] = dataclasses.field(default_factory=list)
    tokens: int = 0
    train_seconds: float = 0.0
    epoch_rng: str | None = None


@dataclass(frozen=True)
class Trained:
    """A complete training, all its attempts together.

    Attributes:
        train_seconds: seconds of the steps that count; steps after an attempt's last checkpoint are lost.
        tokens: tokens of the rows that it saw, without padding.
        gpu_utilization_percent: mean of the last attempt; None where it cannot be read.
        resumed_from: the step from which the last attempt resumed.
    """

    steps: int
    train_seconds: float
    tokens: int
    losses: list[StepValues]
    gpu_utilization_percent: float | None
    resumed_from: int | None = None

    def result_fields(self) -> dict[str, float | None]:
        """The training's part of result.json; ``train_loss`` is the mean of the last tenth of the steps."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return {
            "steps": self.steps,
            "resumed_from": self.resumed_from,
            "train_loss": sum(values["loss"] for values in tail) / len(tail),
            "train_seconds": self.train_seconds,
            "tokens_seen": self.tokens,
            "tokens_per_second": self.tokens / self.train_seconds,
            "gpu_utilization_percent": self.gpu_utilization_percent,
        }


TrainingOutcome = Trained | Diverged | Preempted


def average_samples(samples: Sequence[float]) -> float | None:
    """The mean; None where there are no samples."""
    return sum(samples) / len(samples) if samples else None
