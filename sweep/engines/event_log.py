"""The files that an engine writes: events, failed attempts, outcomes that no worker could write, and progress."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from lora_sweep.runs import files, results
from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.locks import hold_lock
from sweep.engines.job import list_facts
from sweep.status.progress import SweepProgress
from sweep.store import trial_state
from sweep.store.failed_attempts import FailedAttempt, append_failed_attempt
from sweep.trials import Key, PlannedTrial

PROGRESS_SECONDS = 2.0  # between two writings of progress.json


@dataclass
class EventLog:
    """Writes what happens in one sweep, and counts its trials by status.

    Attributes:
        statuses: the status of every trial that the engine knows, by the trial's key.
        progress: how far the sweep is, for the screen and for progress.json. Its counts are those of ``statuses``.
        durations: for each ended trial, how many seconds of a worker's time it took.
        progress_written: when progress.json was written last; seconds of time.monotonic().
    """

    runs: Path
    sweep: str
    statuses: dict[Key, str]
    progress: SweepProgress
    durations: list[float] = field(default_factory=list)
    progress_written: float = 0.0

    def append_event(self, event: str, trial: PlannedTrial | None = None, **details: object) -> None:
        """Add a line to the sweep's events.jsonl."""
        ids = {} if trial is None else {"trial_id": trial.trial_id, "eval_id": trial.eval_id}
        files.append_event(self.runs, self.sweep, event, **ids, **details)

    def record_failed_attempt(self, trial: PlannedTrial, attempt: FailedAttempt) -> None:
        """Add a line to the trial's setbacks.jsonl, and one to the sweep's events.jsonl."""
        crash_point("attempt failed")
        append_failed_attempt(self.runs, trial.trial_id, self.sweep, attempt)
        self.append_event(attempt.how, trial, **attempt.details)
        crash_point("failed attempt recorded")

    def record_outcome(self, trial: PlannedTrial, status: str, event: str = "end") -> None:
        """Log that the trial has an outcome, with the hash of its result, and count it."""
        self.append_event(event, trial, status=status, sha256=trial_state.hash_result(trial, self.runs))
        self.set_status(trial, status)

    def write_outcome(self, trial: PlannedTrial, status: str, reason: str) -> tuple[str, str] | None:
        """Write an outcome that no worker could write, unless the trial already has a final one.

        Returns:
            The status and the reason that the trial then has; None if another sweep runs it.
        """
        ids = {"trial_id": trial.trial_id, "eval_id": trial.eval_id, "kind": trial.kind}
        with hold_lock(files.trial_lock(self.runs, trial.trial_id)) as is_ours:
            if not is_ours:
                return None
            if not results.has_final_outcome(self.runs, *trial.key):
                config = dataclasses.asdict(trial.config)
                results.write_failure(self.runs, ids, config, list_facts(trial), status, reason)
        outcome = results.read_outcome(self.runs, *trial.key)
        self.record_outcome(trial, str(outcome.status))
        return str(outcome.status), str(outcome.reason)

    def set_status(self, trial: PlannedTrial, status: str) -> None:
        """Change the trial's status, and the counts with it."""
        counts, before = self.progress.counts, self.statuses[trial.key]
        self.statuses[trial.key] = status
        counts[before] -= 1
        if not counts[before]:
            del counts[before]
        counts[status] = counts.get(status, 0) + 1

    def write_progress(self, waiting: int, workers: int) -> None:
        """Estimate the time that is left, and every PROGRESS_SECONDS write the file that ``sweep.status`` reads.

        Args:
            waiting: how many trials wait for a worker.
            workers: how many workers run at the same time.
        """
        if self.durations:
            unfinished = waiting + len(self.progress.running)
            mean = sum(self.durations) / len(self.durations)
            self.progress.seconds_left = mean * unfinished / workers if unfinished else None
        now = time.monotonic()
        if now - self.progress_written >= PROGRESS_SECONDS and self.progress.running:
            self.progress_written = now
            files.write_json(files.progress_file(self.runs, self.sweep), self.progress.to_json())
