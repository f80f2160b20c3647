"""Read from its files how far a sweep is: the status of each trial, whether it runs, and which trials run now.

The status of a trial is in its result files. While a sweep runs, its orchestrator writes progress.json every two
seconds.
"""

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs import files
from lora_sweep.runs.locks import describe_holder, is_locked
from lora_sweep.runs.records import read_number
from sweep.status.progress import RunningTrial, SweepProgress
from sweep.store.sweep_file import SweepEntry
from sweep.text import fit_one_line, format_duration

STALE_SECONDS = 30  # an older progress.json is reported
MAX_HOLDER_CHARACTERS = 200


@dataclass(frozen=True)
class TrialStatus:
    """The status of one trial or baseline.

    Attributes:
        status: one of ``results.STATUSES``, or ``waiting``, ``running`` or ``broken``.
        reason: why the trial ended without being complete, or why its files are broken.
    """

    trial_id: str
    label: str
    status: str
    reason: str | None = None

    @property
    def row_key(self) -> tuple[str, str]:
        return self.trial_id, self.label


def read_trial_status(runs: Path, entry: SweepEntry) -> TrialStatus:
    """The status of one trial. The hashes of its files are not checked here; the next run of the sweep checks them."""
    trial_id, label = entry.trial_id, entry.label or entry.trial_id
    folder = files.trial_folder(runs, trial_id)
    for path in (folder.result, folder.evaluation(entry.eval_id).result):
        try:
            outcome = files.read_json(path)
            if outcome is None and path.exists():
                return TrialStatus(trial_id, label, "broken", f"{path.name} is torn")
        except OSError as error:
            return TrialStatus(trial_id, label, "broken", f"{path.name} cannot be read ({error.strerror})")
        status = (outcome or {}).get("status")
        if outcome is None or status is None:
            return TrialStatus(trial_id, label, "waiting")
        if status != "complete":
            return TrialStatus(trial_id, label, str(status), str(outcome.get("reason") or "no reason was recorded"))
    return TrialStatus(trial_id, label, "complete")


def read_lock(runs: Path, name: str) -> tuple[bool, str]:
    """Whether a process runs the sweep, and a sentence about it."""
    lock = files.sweep_lock(runs, name)
    try:
        if is_locked(lock):
            return True, f"it runs: {fit_one_line(describe_holder(lock), MAX_HOLDER_CHARACTERS)}"
    except OSError as error:
        return False, f"it is not known whether it runs ({error.strerror})"
    return False, "it does not run"


def add_running(progress: SweepProgress, runs: Path) -> str:
    """Add the running trials of progress.json to ``progress``, and return a sentence about the age of that file."""
    path = files.progress_file(runs, progress.name)
    not_written = "the list of running trials is not written yet"
    try:
        written = path.stat().st_mtime
        if written < files.sweep_lock(runs, progress.name).stat().st_mtime:
            return not_written  # an earlier process wrote the file, and was killed
        content = files.read_json(path)
    except OSError:
        return not_written
    if content is None:
        return "the list of running trials cannot be read: progress.json is torn"
    rows = content.get("running")
    trials = [parse_running_trial(row) for row in (rows if isinstance(rows, list) else [])]
    progress.running = dict(enumerate(trial for trial in trials if trial is not None))
    progress.seconds_left = read_number(content.get("seconds_left"))
    age = max(0.0, time.time() - written)
    if age > STALE_SECONDS:
        return f"but it has reported nothing for {format_duration(age)}"
    return f"the rows are {format_duration(age)} old"


def parse_running_trial(row: object) -> RunningTrial | None:
    """The running trial in a row of progress.json; None if the row does not describe one."""
    if not isinstance(row, dict) or read_number(row.get("started")) is None:
        return None
    if not all(isinstance(row.get(name), str) for name in ("trial_id", "label", "device")):
        return None
    return RunningTrial(**{f.name: row[f.name] for f in dataclasses.fields(RunningTrial) if f.name in row})


def reconcile_trials(progress: SweepProgress, trials: list[TrialStatus]) -> list[TrialStatus]:
    """Give the running trials the status ``running``, and count the statuses in ``progress``. Returns all trials.

    The results and progress.json were read at different times. If a trial is complete and also listed as running, the
    result is the newer one.
    """
    complete = {trial.row_key for trial in trials if trial.status == "complete"}
    progress.running = {
        key: trial for key, trial in progress.running.items() if (trial.trial_id, trial.label) not in complete
    }
    running = {(trial.trial_id, trial.label) for trial in progress.running.values()}
    trials = [
        dataclasses.replace(trial, status="running", reason=None) if trial.row_key in running else trial
        for trial in trials
    ]
    progress.counts = dict(Counter(trial.status for trial in trials))
    return trials
