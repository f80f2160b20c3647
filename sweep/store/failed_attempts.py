"""The failed attempts at a trial: the lines of its setbacks.jsonl.

After a failed attempt the trial has no outcome yet, and runs again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from lora_sweep.runs import files

Cause = Literal["death", "oom", "apart"]


@dataclass(frozen=True)
class FailedAttempt:
    """Why an attempt at a trial failed.

    Attributes:
        how: ``death``: the worker died while it ran this trial alone. ``oom``: memory ran out, and the trial runs again
            with half the batch. ``apart``: its pack failed, and the trial runs again, alone.
        stage: for ``oom``, the stage whose batch is halved: ``train`` or ``evaluate``.
        signal: for ``death``, the signal or exit code of the process.
        reason: for ``apart``, why the pack failed.
    """

    how: Cause
    stage: str | None = None
    signal: str | None = None
    reason: str | None = None

    @property
    def details(self) -> dict[str, str]:
        """The fields besides ``how`` that have a value."""
        details = {"stage": self.stage, "signal": self.signal, "reason": self.reason}
        return {name: value for name, value in details.items() if value is not None}


def read_failed_attempts(runs: Path, trial_id: str) -> list[FailedAttempt]:
    """The failed attempts at a trial, the oldest first. ``launch.retry=failed`` removes those before it."""
    lines = files.read_jsonl(files.trial_folder(runs, trial_id).setbacks)
    return [
        FailedAttempt(cast(Cause, line.get("how")), line.get("stage"), line.get("signal"), line.get("reason"))
        for line in lines
    ]


def append_failed_attempt(runs: Path, trial_id: str, sweep: str, attempt: FailedAttempt) -> None:
    """Add a line to the trial's setbacks.jsonl."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": time, "how": attempt.how, "sweep": sweep, **attempt.details}
    files.append_line(files.trial_folder(runs, trial_id).setbacks, line)


def count_deaths(attempts: Iterable[FailedAttempt]) -> int:
    """The number of workers that died while they ran the trial alone."""
    return sum(attempt.how == "death" for attempt in attempts)


def count_halvings(attempts: Iterable[FailedAttempt], stage: str) -> int:
    """The number of times that the batch of ``stage`` was halved because memory ran out."""
    return sum(attempt.how == "oom" and attempt.stage == stage for attempt in attempts)
