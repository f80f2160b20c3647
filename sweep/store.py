"""Sweeps over the trials' own folders: which trials a name means, and which of them still need work.

The trials' files belong to ``lora_sweep.results``; this file owns runs/sweeps/<name>.json alone.
"""

import datetime
from pathlib import Path
from typing import Any

from lora_sweep import results
from lora_sweep.identity import short_hash
from sweep.trials import Plan, Planned


def sweep_name(plan: Plan) -> str:
    """The name given in the config, or a short hash of the sorted trial ids."""
    given = plan.trials[0].config.sweep_name
    return given or f"sweep-{short_hash(sorted({trial.trial_id for trial in plan.trials}), 8)}"


def unfinished(plan: Plan, runs: Path) -> list[Planned]:
    """The trials that still need work, in order."""
    return [trial for trial in plan.trials if not results.is_settled(runs, *trial.key)]


def write_sweep(plan: Plan, runs: Path, name: str, command: str) -> None:
    """Record the sweep; a name used before keeps its other trials. An unchanged sweep changes no file.

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
    if ordered == before.get("trials") and not unfinished(plan, runs):
        return
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    varied = list(dict.fromkeys([*before.get("varied", []), *plan.varied]))
    sweep = {"name": name, "command": command, "started": started, "varied": varied, "trials": ordered}
    results.write_json(path, sweep)


def clear_failures(trials: list[Planned], runs: Path) -> None:
    """Remove outcomes that are to be tried again, so that an outcome found later is this attempt's."""
    for trial in trials:
        folder = results.trial_folder(runs, trial.trial_id)
        for path in (folder.result, folder.evaluation(trial.eval_id).result):
            if (results.read_json(path) or {}).get("status") != "complete":
                path.unlink(missing_ok=True)
