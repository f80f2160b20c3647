"""What the files say of each trial of a plan: which are done, which need work, and which cannot be trusted.

``lora_sweep.runs.results`` writes these files.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs import files, results
from lora_sweep.runs.locks import claim
from sweep.store.sweep_file import is_recorded
from sweep.trials import Plan, PlannedTrial


@dataclass(frozen=True)
class State:
    """What the files say of a trial with its evaluation.

    Attributes:
        name: ``done`` (complete), ``new``, ``trained`` (only the evaluation is left), ``saved`` (a checkpoint),
            ``broken`` (its files are not as they were written), or the status with which it ended otherwise.
        why: of a broken or failed one.
        settled: whether a run of the command leaves it alone.
    """

    name: str
    why: str | None = None
    settled: bool = False


def state_of(trial: PlannedTrial, runs: Path) -> State:
    """The state of one trial from its files; reads and hashes, writes nothing."""
    folder = files.trial_folder(runs, trial.trial_id)
    evaluation = folder.evaluation(trial.eval_id)
    for path in (folder.result, evaluation.result):
        why = results.broken(path)
        if why:
            return State("broken", why)
    outcome = results.read_outcome(runs, *trial.key)
    if outcome.status == "complete":
        written_with = results.read_evaluation_result(evaluation).adapter
        if written_with != results.hash_adapter(results.read_trial_result(folder)):
            return State("broken", "its evaluation is of another adapter")  # a person deleted the training's result
        return State("done", settled=True)
    if outcome.status is not None:
        return State(outcome.status, outcome.reason, settled=outcome.status in results.SETTLED)
    if trial.kind == "trial" and folder.result.exists():
        return State("trained")
    return State("saved" if any(folder.checkpoints.glob("checkpoint-*")) else "new")


def states(plan: Plan, runs: Path) -> dict[tuple[str, str], State]:
    """The state of every trial of the plan, by its key."""
    return {trial.key: state_of(trial, runs) for trial in plan.trials}


def prepare(trial: PlannedTrial, state: State, runs: Path, retry: bool) -> str | None:
    """Make a trial ready to be run: move aside what is broken, and forget a failure that is to be tried again.

    Returns:
        A line to say, where something was moved aside. A trial that another process runs is left alone.
    """
    if state.name != "broken" and not (retry and state.name not in ("done", "invalid")):
        return None
    folder = files.trial_folder(runs, trial.trial_id)
    evaluation = folder.evaluation(trial.eval_id)
    with claim(files.trial_lock(runs, trial.trial_id)) as ours:
        if not ours:
            return None
        state = state_of(trial, runs)  # once more: another sweep may have moved it aside and run it again
        if state.name == "broken":
            path = folder.path if results.broken(folder.result) else evaluation.path
            place = files.quarantine(runs, path, str(state.why))
            return f"{trial.label}: {state.why}; kept as {place.relative_to(runs)}, and run again"
        if retry and state.name not in ("done", "invalid"):
            folder.setbacks.unlink(missing_ok=True)
            results.forget_failure(folder, trial.eval_id)
    return None


def is_trained(trial: PlannedTrial, runs: Path) -> bool:
    """Whether only its evaluation is left."""
    return results.is_trained(files.trial_folder(runs, trial.trial_id))


def result_hash(trial: PlannedTrial, runs: Path) -> str | None:
    """The sha256 of the result.json that holds the trial's outcome."""
    folder = files.trial_folder(runs, trial.trial_id)
    for path in (folder.evaluation(trial.eval_id).result, folder.result):
        if path.exists():
            return files.file_hashes(path.parent, [path.name])[path.name]
    return None


def is_done(plan: Plan, states: dict[tuple[str, str], State], runs: Path, name: str) -> bool:
    """Whether a run of the plan would change nothing: every trial settled, and the sweep's file as it would be."""
    retry = plan.trials[0].config.launch.retry == "failed"
    again = ("done", "invalid") if retry else ()
    return is_recorded(plan, runs, name) and all(s.settled and (s.name in again or not retry) for s in states.values())


def is_mirrored(runs: Path, name: str) -> bool:
    """Whether the sweep's own run of W&B is of its last run here; a kill can come in between."""
    events = [event.get("event") for event in files.read_jsonl(files.events_file(runs, name))]
    worked = [place for place, event in enumerate(events) if event == "begin"]
    return not worked or "mirrored" in events[worked[-1] :]


def write_invalid(plan: Plan, runs: Path) -> None:
    """A result for each point that cannot work, so that it is a row of the report."""
    for point in plan.invalid:
        if results.read_outcome(runs, *point.key).reason != point.reason:
            ids = {"trial_id": point.trial_id, "eval_id": point.eval_id, "kind": "trial"}
            results.write_failure(runs, ids, dataclasses.asdict(point.config), {}, "invalid", point.reason)
