"""Drift: the model, the data or the code changed after a trial of the sweep was finished.

With another model or other data a trial has another id. The old rows stay in the sweep, and are shown but not ranked.
Other code does not change the id: the trial stays done, and the report says that the code differs. A source that a
file does not record never counts as drift.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_sweep.runs import files, results
from lora_sweep.runs.records import EvaluationResult, Provenance, TrialResult
from sweep.store.sweep_file import Sources, list_sources, read_sweep_file
from sweep.store.trial_state import TrialState
from sweep.trials import Key, Plan

SOURCE_WORDS = {"model": "another model", "data": "other data"}
NOT_RECORDED = "not recorded"
OUR_CODE = "our code"
Json = dict[str, Any]  # a trial's configuration, as its config.json holds it
CodeChanges = dict[str, tuple[str, str]]  # name of a library, or OUR_CODE: (version then, version now)


def list_row_sources(config: Json, training: TrialResult) -> dict[str, tuple[str, str]]:
    """The recorded model and data of a trial, as ``{"data": ("data catalogue", fingerprint), "model": ...}``.

    A source that the files do not record is left out.
    """
    sources = {}
    for kind in SOURCE_WORDS:
        group, fingerprint = config.get(kind), training.fingerprints.get(kind)
        name = group.get("name") if isinstance(group, dict) else None
        if isinstance(name, str) and fingerprint is not None:
            sources[kind] = (f"{kind} {name}", fingerprint)
    return sources


def find_source_changes(config: Json, training: TrialResult, sources: Sources) -> dict[str, str]:
    """The sources of a trial that changed since, as ``{"data": "catalogue: file:ab… then, file:cd… now"}``."""
    changes = {}
    for kind, (source, before) in list_row_sources(config, training).items():
        now = sources.get(source)
        if now and before not in now:
            name, short_now = source.partition(" ")[2], " or ".join(map(shorten_fingerprint, now))
            changes[kind] = f"{name}: {shorten_fingerprint(before)} then, {short_now} now"
    return changes


def find_code_changes(before: Provenance, now: Provenance) -> CodeChanges:
    """The libraries that have other versions in the two provenances, and OUR_CODE if it differs."""
    if not before.is_recorded or not now.is_recorded:
        return {}
    pairs = {name: (before.versions[name], now.versions[name]) for name in now.versions if name in before.versions}
    if now.code:
        pairs[OUR_CODE] = (before.code or NOT_RECORDED, now.code)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def find_row_drift(
    config: Json, training: TrialResult, evaluation: EvaluationResult, sources: Sources, now: Provenance
) -> list[str]:
    """Those of ``model``, ``data`` and ``code`` that differ from the last run of the sweep.

    Args:
        sources: the fingerprints of the last run.
        now: the provenance of the last run.
    """
    has_other_code = any(find_code_changes(result.provenance, now) for result in (training, evaluation))
    return [*find_source_changes(config, training, sources), *(["code"] if has_other_code else [])]


def shorten_fingerprint(fingerprint: str) -> str:
    """A fingerprint with eight digits of its hash, as ``file:ab12cd34…``."""
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{3,}", r"\1…", fingerprint)


def describe_other_sources(kinds: list[str]) -> str:
    """The changed sources in words, as ``another model and other data``."""
    return " and ".join(words for kind, words in SOURCE_WORDS.items() if kind in kinds)


# --- before a run ------------------------------------------------------------------------------------------------


def format_drift_notes(
    plan: Plan, states: Mapping[Key, TrialState], runs: Path, name: str, now: Json | None = None
) -> list[str]:
    """The lines about drift above the table of a plan.

    Args:
        name: of the sweep. Its file can list rows of earlier runs that are not in the plan.
        now: ``provenance.collect_versions()`` of this process; None: call it if it is needed.
    """
    return [*format_source_notes(plan, runs, name), *format_code_notes(plan, states, runs, now)]


def format_source_notes(plan: Plan, runs: Path, name: str) -> Iterator[str]:
    """A line for each combination of changed sources among the finished rows of earlier runs."""
    sources, planned = list_sources(plan), {trial.trial_id for trial in plan.trials}
    sweep = read_sweep_file(runs, name)
    earlier_ids = [entry.trial_id for entry in sweep.trials if entry.trial_id not in planned] if sweep else []
    counts: dict[str, int] = {}
    details: dict[str, dict[str, None]] = {}
    for trial_id in earlier_ids:
        folder = files.trial_folder(runs, trial_id)
        training = results.read_trial_result(folder)
        if training.status == "complete":
            config = (files.read_json(folder.config) or {}).get("config")
            changes = find_source_changes(config if isinstance(config, dict) else {}, training, sources)
            words = describe_other_sources(list(changes))
            counts[words] = counts.get(words, 0) + 1
            details.setdefault(words, {}).update(dict.fromkeys(changes.values()))
    for words in filter(None, counts):
        rows, they = ("row was", "it stays") if counts[words] == 1 else ("rows were", "they stay")
        yield (
            f"drift: {counts[words]} finished {rows} made from {words} ({'; '.join(details[words])}): "
            f"{they} in the report, out of its ranking"
        )


def format_code_notes(
    plan: Plan, states: Mapping[Key, TrialState], runs: Path, now: Json | None = None
) -> Iterator[str]:
    """A line about the done trials of the plan that were made by other code, if there are any."""
    done = [trial for trial in plan.trials if states[trial.key].name in ("done", "trained")]
    if done and now is None:
        from lora_sweep.runs.provenance import collect_versions  # imported late: a report must not load it

        now = collect_versions()
    present, count = Provenance.from_json(now), 0
    versions_before: dict[str, dict[str, None]] = {}  # the inner dicts are ordered sets
    versions_now: dict[str, str] = {}
    for trial in done:
        folder = files.trial_folder(runs, trial.trial_id)
        evaluation = results.read_evaluation_result(folder.evaluation(trial.eval_id))
        provenances = [results.read_trial_result(folder).provenance, evaluation.provenance]
        changes = [find_code_changes(before, present) for before in provenances]
        count += any(changes)
        for library, (before, after) in (item for change in changes for item in change.items()):
            versions_before.setdefault(library, {})[before] = None
            versions_now[library] = after
    if count:
        libraries = [
            f"{library} {' / '.join(before)} then, {versions_now[library]} now"
            for library, before in versions_before.items()
            if library != OUR_CODE
        ]
        details = [*libraries, *(["our code changed"] if OUR_CODE in versions_before else [])]
        yield f"drift: {count} done trial{' was' if count == 1 else 's were'} made by other code ({'; '.join(details)})"
