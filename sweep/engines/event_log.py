"""What a crew writes down: the sweep's events, the setbacks and outcomes that no worker could write, and its board."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_sweep.runs import files, results
from lora_sweep.runs.locks import claim
from sweep.engines.local.worker_process import as_job
from sweep.status.progress import Board
from sweep.store import trial_state
from sweep.trials import Key, PlannedTrial

PROGRESS_SECONDS = 2.0  # between two writings of progress.json


@dataclass
class Ledger:
    """The record of one sweep; ``status`` is of every trial of the plan, by its key, and ``board`` counts it."""

    runs: Path
    name: str
    status: dict[Key, str]
    board: Board
    durations: list[float] = field(default_factory=list)  # seconds that a trial took a worker
    wrote_progress: float = 0.0

    def note(self, event: str, trial: PlannedTrial | None = None, **more: Any) -> None:
        """Append to the sweep's log."""
        ids = {} if trial is None else {"trial_id": trial.trial_id, "eval_id": trial.eval_id}
        files.append_event(self.runs, self.name, event, **ids, **more)

    def setback(self, trial: PlannedTrial, how: str, **more: Any) -> None:
        """Append to the trial's setbacks, and to the log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        folder = files.trial_folder(self.runs, trial.trial_id)
        files.append_line(folder.setbacks, {"time": now, "how": how, "sweep": self.name, **more})
        self.note(how, trial, **more)

    def ended(self, trial: PlannedTrial, status: str, what: str = "end") -> None:
        """A trial has its outcome: acknowledge it with the hash of its result."""
        self.note(what, trial, status=status, sha256=trial_state.result_hash(trial, self.runs))
        self.set_status(trial, status)

    def write_outcome(self, trial: PlannedTrial, status: str, reason: str) -> tuple[str, str] | None:
        """Write an outcome that the worker could not write, unless there is one by now.

        Returns:
            The status and the reason that the trial then has; None where another sweep has begun it.
        """
        job = as_job(trial)
        ids = {key: job[key] for key in ("trial_id", "eval_id", "kind")}
        with claim(files.trial_lock(self.runs, trial.trial_id)) as ours:
            if not ours:
                return None
            if not results.is_settled(self.runs, *trial.key):
                results.write_failure(self.runs, ids, job["config"], job["facts"], status, reason)
        outcome = results.read_outcome(self.runs, *trial.key)
        self.ended(trial, str(outcome.status))
        return str(outcome.status), str(outcome.reason)

    def set_status(self, trial: PlannedTrial, status: str) -> None:
        """Set it, and count it anew."""
        before = self.status[trial.key]
        self.status[trial.key] = status
        counts = self.board.counts
        counts[before] -= 1
        if not counts[before]:
            del counts[before]
        counts[status] = counts.get(status, 0) + 1

    def progress(self, waiting: int, workers: int) -> None:
        """Estimate what is left, and now and then write the file that another terminal reads."""
        if self.durations:
            left = waiting + len(self.board.running)
            mean = sum(self.durations) / len(self.durations)
            self.board.seconds_left = mean * left / workers if left else None
        now = time.monotonic()
        if now - self.wrote_progress >= PROGRESS_SECONDS and self.board.running:
            self.wrote_progress = now
            files.write_json(files.progress_file(self.runs, self.name), self.board.to_json())
