"""The state of each trial of a plan, read from its files: done, still to run, or broken.

Workers write these files with ``lora_sweep.runs.results``.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from sweep.store.sweep_file import is_recorded
from sweep.trials import Key, Plan, PlannedTrial


@dataclass(frozen=True)
class TrialState:
    """The state of a trial with its evaluation.

    Attributes:
        name: ``done`` (complete), ``new``, ``trained`` (only the evaluation is left), ``saved`` (there is a
            checkpoint), ``broken`` (a file changed after it was written), or the status of another outcome.
        reason: why the trial is broken or has this outcome.
        is_final: whether the trial does not run again, unless the command retries failures.
    """

    name: str
    reason: str | None = None
    is_final: bool = False

    def needs_work(self, retry_failed: bool) -> bool:
        """Whether the command runs the trial.

        Args:
            retry_failed: whether the command retries failures (``launch.retry=failed``).
        """
        return not self.is_final or (retry_failed and self.name not in ("done", "invalid"))


def read_trial_states(plan: Plan, runs: Path) -> dict[Key, TrialState]:
    """The state of every trial of the plan."""
    return {trial.key: read_trial_state(trial, runs) for trial in plan.trials}


def read_trial_state(trial: PlannedTrial, runs: Path) -> TrialState:
    """The state of one trial. This reads and hashes its files, and writes none."""
    folder = files.trial_folder(runs, trial.trial_id)
    evaluation = folder.evaluation(trial.eval_id)
    for path in (folder.result, evaluation.result):
        reason = results.find_damage(path)
        if reason:
            return TrialState("broken", reason)
    outcome = results.read_outcome(runs, *trial.key)
    if outcome.status == "complete":
        evaluated_adapter = results.read_evaluation_result(evaluation).adapter
        if evaluated_adapter != results.hash_adapter(results.read_trial_result(folder)):
            # A person deleted the result of the training, and the trial was trained again.
            return TrialState("broken", "its texts are those of another adapter")
        return TrialState("done", is_final=True)
    if outcome.status is not None:
        return TrialState(outcome.status, outcome.reason, is_final=outcome.status in results.FINAL_STATUSES)
    if trial.kind == "trial" and folder.result.exists():
        return TrialState("trained")
    return TrialState("saved" if any(folder.checkpoints.glob("checkpoint-*")) else "new")


def prepare_trial(trial: PlannedTrial, state: TrialState, runs: Path, retry_failed: bool) -> str | None:
    """Move a broken trial to quarantine, and delete the failure of a trial that is retried.

    Any other trial stays as it is, and so does a trial that another process runs.

    Returns:
        A message for people if a folder was moved, else None.
    """
    if state.name != "broken" and not (retry_failed and state.needs_work(retry_failed)):
        return None
    folder = files.trial_folder(runs, trial.trial_id)
    evaluation = folder.evaluation(trial.eval_id)
    with hold_lock(files.trial_lock(runs, trial.trial_id)) as is_ours:
        if not is_ours:
            return None
        state = read_trial_state(trial, runs)  # read again: another sweep may have repaired it before we got the lock
        if state.name == "broken":
            path = folder.path if results.find_damage(folder.result) else evaluation.path
            quarantined = files.quarantine_folder(runs, path, str(state.reason))
            return f"{trial.label}: {state.reason}; kept as {quarantined.relative_to(runs)}, and run again"
        if retry_failed and state.needs_work(retry_failed):
            folder.setbacks.unlink(missing_ok=True)
            results.remove_failures(folder, trial.eval_id)
    return None


def is_trained(trial: PlannedTrial, runs: Path) -> bool:
    """Whether the training is complete."""
    return results.is_trained(files.trial_folder(runs, trial.trial_id))


def hash_result(trial: PlannedTrial, runs: Path) -> str | None:
    """The sha256 of the result.json with the trial's outcome; None if there is no such file."""
    folder = files.trial_folder(runs, trial.trial_id)
    for path in (folder.evaluation(trial.eval_id).result, folder.result):
        if path.exists():
            return files.hash_files(path.parent, [path.name])[path.name]
    return None


def is_done(plan: Plan, states: Mapping[Key, TrialState], runs: Path, name: str) -> bool:
    """Whether the command has nothing to do: no trial needs work, and the sweep's file lists all of them."""
    retry_failed = plan.trials[0].config.launch.retry == "failed"
    return is_recorded(plan, runs, name) and not any(state.needs_work(retry_failed) for state in states.values())


def is_mirrored(runs: Path, name: str) -> bool:
    """Whether the tracker got the results of the sweep's last run. A kill can prevent that."""
    events = [event.get("event") for event in files.read_jsonl(files.events_file(runs, name))]
    begins = [index for index, event in enumerate(events) if event == "begin"]
    return not begins or "mirrored" in events[begins[-1] :]


def write_invalid_results(plan: Plan, runs: Path) -> None:
    """Write a result for each invalid point, so that the report has a row for it."""
    for point in plan.invalid:
        if results.read_outcome(runs, *point.key).reason != point.reason:
            ids = {"trial_id": point.trial_id, "eval_id": point.eval_id, "kind": "trial"}
            results.write_failure(runs, ids, dataclasses.asdict(point.config), {}, "invalid", point.reason)
