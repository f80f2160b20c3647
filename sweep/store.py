"""What is on disk for the trials of a plan, and the sweep's own file.

The trials' files belong to ``lora_sweep.results``; this file owns runs/sweeps/<name>.json, and decides from the files
which trials are done, which need work, and which cannot be trusted.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep import results
from lora_sweep.claims import claim
from lora_sweep.identity import short_hash
from sweep.trials import Plan, Planned


@dataclass(frozen=True)
class State:
    """What the files say of a trial with its evaluation.

    Attributes:
        name: ``done`` (complete), ``new``, ``trained`` (only the evaluation is left), ``saved`` (a checkpoint is there),
            ``broken`` (its files are not as they were written), or the status with which it ended otherwise.
        why: of a broken or failed one.
        settled: whether a run of the command leaves it alone.
    """

    name: str
    why: str | None = None
    settled: bool = False


def state_of(trial: Planned, runs: Path) -> State:
    """The state of one trial from its files; reads and hashes, writes nothing."""
    folder = results.trial_folder(runs, trial.trial_id)
    evaluation = folder.evaluation(trial.eval_id)
    for path in (folder.result, evaluation.result):
        why = results.broken(path)
        if why:
            return State("broken", why)
    training = results.read_json(folder.result) or {}
    outcome = training
    if training.get("status") == "complete":
        outcome = results.read_json(evaluation.result) or {}
        if not outcome:
            return State("new" if trial.kind == "baseline" else "trained")
    status = outcome.get("status")
    if status is None:
        return State("saved" if any(folder.checkpoints.glob("checkpoint-*")) else "new")
    if status == "complete":
        return State("done", settled=True)
    return State(str(status), outcome.get("reason"), settled=status in results.SETTLED)


def states(plan: Plan, runs: Path) -> dict[tuple[str, str], State]:
    """The state of every trial of the plan, by its key."""
    return {trial.key: state_of(trial, runs) for trial in plan.trials}


def prepare(trial: Planned, state: State, runs: Path, retry: bool) -> str | None:
    """Make a trial ready to be run: move aside what is broken, and forget a failure that is to be tried again.

    Returns:
        A line to say, where something was moved aside. A trial that another process runs is left alone.
    """
    if state.name != "broken" and not (retry and state.name not in ("done", "invalid")):
        return None
    folder = results.trial_folder(runs, trial.trial_id)
    evaluation = folder.evaluation(trial.eval_id)
    with claim(results.trial_lock(runs, trial.trial_id)) as ours:
        if not ours:
            return None
        if state.name == "broken":
            path = folder.path if results.broken(folder.result) else evaluation.path
            if not path.exists():  # moved with another evaluation of its trial
                return None
            place = results.quarantine(runs, path, str(state.why))
            return f"{trial.label}: {state.why}; kept as {place.relative_to(runs)}, and run again"
        results.forget_failure(folder, trial.eval_id)
        folder.setbacks.unlink(missing_ok=True)
    return None


def sweep_name(plan: Plan) -> str:
    """The name given in the config, or a short hash of the sorted trial ids."""
    given = plan.trials[0].config.sweep_name
    return given or f"sweep-{short_hash(sorted({trial.trial_id for trial in plan.trials}), 8)}"


def write_sweep(plan: Plan, runs: Path, name: str, command: str, work: bool) -> None:
    """Record the sweep; a name used before keeps its other trials. An unchanged sweep without work changes no file.

    A trial that is evaluated anew is listed with its new evaluation: two evaluations cannot be ranked together.
    """
    path = results.sweep_file(runs, name)
    before = results.read_json(path) or {}
    planned = {trial.trial_id for trial in plan.trials}
    entries: list[dict[str, Any]] = [entry for entry in before.get("trials", []) if entry["trial_id"] not in planned]
    fields = ("trial_id", "eval_id", "kind", "label")
    for trial in plan.trials:
        entry = {field: getattr(trial, field) for field in fields}
        entries.append({**entry, "baseline": list(trial.baseline) if trial.baseline else None})
    ordered = sorted(entries, key=lambda entry: str(entry["kind"]))  # stable: baseline < trial
    if ordered == before.get("trials") and not work:
        return
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    varied = list(dict.fromkeys([*before.get("varied", []), *plan.varied]))
    sweep = {"name": name, "command": command, "started": started, "varied": varied, "trials": ordered}
    results.write_json(path, sweep)
