"""What changed since a finished trial: its model, its data, or the code that made its numbers.

Another model or other data give a trial another id, so nothing old is ever reused; but a sweep's name keeps its old
rows, and those are no rivals of the new ones. Other code keeps the id: what is done stays done, and is said to differ.
Pure but for :func:`drift_notes`, which reads result files. Whatever a file holds, unknown is no drift.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_sweep.runs import files, results
from lora_sweep.runs.records import EvaluationResult, Provenance, TrialResult
from sweep.store.sweep_file import Sources, list_sources, read_sweep_file
from sweep.store.trial_state import State
from sweep.trials import Key, Plan

KINDS = {"model": "another model", "data": "other data"}
NOT_RECORDED = "not recorded"


def made_from(config: dict[str, Any], training: TrialResult) -> dict[str, tuple[str, str]]:
    """``{"data": ("data catalogue", fingerprint)}`` of a row, and likewise its model; without what is unknown."""
    found = {}
    for kind in KINDS:
        name, fingerprint = _dict(config.get(kind)).get("name"), training.fingerprints.get(kind)
        if isinstance(name, str) and fingerprint is not None:
            found[kind] = (f"{kind} {name}", fingerprint)
    return found


def source_changes(config: dict[str, Any], training: TrialResult, sources: Sources) -> dict[str, str]:
    """``{"data": "catalogue: file:ab12… then, file:cd34… now"}`` of a row that was made from something else."""
    changes = {}
    for kind, (name, then) in made_from(config, training).items():
        now = sources.get(name)
        if now and then not in now:
            meant = " or ".join(short(each) for each in now)
            changes[kind] = f"{name.partition(' ')[2]}: {short(then)} then, {meant} now"
    return changes


def code_changes(then: Provenance, now: Provenance) -> dict[str, tuple[str, str]]:
    """(then, now) of each library, and of ``our code``, that differs between two provenances."""
    if not then.is_recorded or not now.is_recorded:
        return {}
    pairs = {name: (then.versions[name], now.versions[name]) for name in now.versions if name in then.versions}
    if now.code:
        pairs["our code"] = (then.code or NOT_RECORDED, now.code)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def row_drift(
    config: dict[str, Any], training: TrialResult, evaluation: EvaluationResult, sources: Sources, now: Provenance
) -> list[str]:
    """Which of ``model``, ``data`` and ``code`` are not those that the sweep last ran with."""
    code = any(code_changes(result.provenance, now) for result in (training, evaluation))
    return [*source_changes(config, training, sources), *(["code"] if code else [])]


def short(fingerprint: str) -> str:
    """``file:ab12cd34…``"""
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{3,}", r"\1…", fingerprint)


def from_what(kinds: list[str]) -> str:
    """``another model and other data``"""
    return " and ".join(words for kind, words in KINDS.items() if kind in kinds)


# --- before a run ------------------------------------------------------------------------------------------------


def drift_notes(
    plan: Plan, states: dict[Key, State], runs: Path, name: str, now: dict[str, Any] | None = None
) -> list[str]:
    """Lines for a plan's head on what is finished already and was made from, or by, something else.

    Args:
        states: of the plan's trials, by their key.
        name: of the sweep; a name used before has rows beside the plan's.
        now: ``provenance.versions_and_code()`` of this process, where the caller has it already.
    """
    return [*_source_notes(plan, runs, name), *_code_notes(plan, states, runs, now)]


def _source_notes(plan: Plan, runs: Path, name: str) -> Iterator[str]:
    sources = list_sources(plan)
    planned = {trial.trial_id for trial in plan.trials}
    sweep = read_sweep_file(runs, name)
    older = [entry.trial_id for entry in sweep.trials if entry.trial_id not in planned] if sweep else []
    counts: dict[str, int] = {}
    details: dict[str, dict[str, None]] = {}
    for trial_id in older:
        folder = files.trial_folder(runs, trial_id)
        training = results.read_trial_result(folder)
        if training.status == "complete":
            config = _dict((files.read_json(folder.config) or {}).get("config"))
            changes = source_changes(config, training, sources)
            what = from_what(list(changes))
            counts[what] = counts.get(what, 0) + 1
            details.setdefault(what, {}).update(dict.fromkeys(changes.values()))
    for what in filter(None, counts):
        rows, they = ("row was", "it stays") if counts[what] == 1 else ("rows were", "they stay")
        yield (
            f"drift: {counts[what]} finished {rows} made from {what} ({'; '.join(details[what])}): "
            f"{they} in the report, out of its ranking"
        )


def _code_notes(plan: Plan, states: dict[Key, State], runs: Path, now: dict[str, Any] | None) -> Iterator[str]:
    done = [trial for trial in plan.trials if states[trial.key].name in ("done", "trained")]
    if done and now is None:
        from lora_sweep.runs.provenance import versions_and_code  # of this moment, which a report must not know

        now = versions_and_code()
    present = Provenance.from_json(now)
    count, seen = 0, dict[str, tuple[dict[str, None], str]]()
    for trial in done:
        folder = files.trial_folder(runs, trial.trial_id)
        evaluation = results.read_evaluation_result(folder.evaluation(trial.eval_id))
        made = [results.read_trial_result(folder).provenance, evaluation.provenance]
        changes = [code_changes(then, present) for then in made]
        count += any(changes)
        for what, (before, after) in (item for each in changes for item in each.items()):
            seen.setdefault(what, ({}, after))[0][before] = None
    if count:
        libraries = [f"{what} {' / '.join(then)} then, {after} now" for what, (then, after) in seen.items()]
        ours = ["our code changed"] if "our code" in seen else []
        said = "; ".join([text for text in libraries if not text.startswith("our code ")] + ours)
        yield f"drift: {count} done trial{' was' if count == 1 else 's were'} made by other code ({said})"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
