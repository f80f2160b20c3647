"""The file runs/sweeps/<name>.json: a sweep's trials, its command, and what its trials were made from.

Every other module reads and writes this file through the functions below. A trial's numbers are not in it: they are in
the trial's own folder.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import short_hash
from lora_sweep.errors import Refused, find_nearest
from lora_sweep.runs import files
from sweep.trials import Key, Plan, hash_invalid_trial

MAIN_COMMAND = "python -m lora_sweep.train -m lora.r=8,16 lora.targets=attn,all_linear quant=4bit,8bit"
MAX_LISTED_SWEEPS = 20  # in one sentence
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
Sources = dict[str, list[str]]  # "data catalogue": its fingerprints; several where a plan varies the source itself


@dataclass(frozen=True)
class SweepEntry:
    """One trial or baseline of a sweep, as the sweep's file lists it.

    Attributes:
        kind: ``trial`` or ``baseline``; empty where the file does not say.
        label: the trial's name for people; empty where the file does not say.
        baseline: the key of the trial's baseline, if it has one.
        overrides: what a person types to run this trial alone; None where nobody recorded it.
    """

    trial_id: str
    eval_id: str
    kind: str = ""
    label: str = ""
    baseline: Key | None = None
    overrides: list[str] | None = None

    @property
    def key(self) -> Key:
        return self.trial_id, self.eval_id


@dataclass(frozen=True)
class SweepFile:
    """The content of a sweep's file.

    Attributes:
        command: the command that starts and resumes the sweep.
        started: ISO time of the last run that changed this file.
        varied: the configuration keys that differ between trials.
        sources: the fingerprints that the names of models and data sets had when the sweep last ran.
        trials: baselines first.
        split: the split that the texts are scored on: ``validation``, or ``test`` for a sweep of ``sweep.confirm``.
        provenance: versions and code of the last run that had work to do; None in a file of an older version.
    """

    name: str
    command: str = ""
    started: str = ""
    varied: list[str] = field(default_factory=list)
    sources: Sources = field(default_factory=dict)
    trials: list[SweepEntry] = field(default_factory=list)
    split: str = "validation"
    provenance: Mapping[str, object] | None = None


# --- reading -----------------------------------------------------------------------------------------------------


def read_sweep_file(runs: Path, name: str) -> SweepFile | None:
    """The sweep's file; None where there is none or it is not whole.

    Raises:
        Refused: the file does not list the folders of its trials.
    """
    content = files.read_json(files.sweep_file(runs, name))
    if content is None:
        return None
    entries = content.get("trials", [])
    if not isinstance(entries, list) or not all(is_entry(entry) for entry in entries):
        raise Refused(f"sweep {name!r}", "has a file whose trials are not a list of trial_id and eval_id")
    provenance = content.get("provenance")
    return SweepFile(
        name=name,
        command=str(content.get("command") or ""),
        started=str(content.get("started") or ""),
        varied=[key for key in as_list(content.get("varied")) if isinstance(key, str)],
        sources=parse_sources(content.get("sources")),
        trials=[parse_entry(entry) for entry in entries],
        split=str(content.get("split") or "validation"),
        provenance=provenance if isinstance(provenance, dict) else None,
    )


def load_sweep_file(runs: Path, name: str) -> SweepFile:
    """The sweep's file.

    Raises:
        Refused: no sweep has this name, or its file does not list the folders of its trials.
    """
    names = list_sweeps(runs)
    if not names:
        raise make_no_sweep_error(runs)
    sweep = read_sweep_file(runs, name) if name in names else None
    if sweep is not None:
        return sweep
    shown, closest = names[:MAX_LISTED_SWEEPS], find_nearest(name, names)
    if closest is not None and closest not in shown:
        shown.append(closest)
    raise Refused(f"sweep {name!r}", "is not there", shown, name)


def list_sweeps(runs: Path) -> list[str]:
    """Names of the sweeps below ``runs``, the last started first."""
    started = []
    for path in (runs / "sweeps").glob("*.json"):
        content = files.read_json(path)
        if content is not None:
            started.append((to_seconds(content.get("started")), path.stem))
    return [name for _, name in sorted(started, reverse=True)]


def find_newest_sweep(runs: Path) -> str:
    """The name of the sweep that was started last; a sweep on the test split counts only where there is no other.

    Raises:
        Refused: there is no sweep; the message holds a command that makes one.
    """
    names = list_sweeps(runs)
    if not names:
        raise make_no_sweep_error(runs)
    splits = ((files.read_json(files.sweep_file(runs, name)) or {}).get("split") for name in names)
    return next((name for name, split in zip(names, splits, strict=True) if split != "test"), names[0])


def make_no_sweep_error(runs: Path) -> Refused:
    return Refused(str(runs), f"holds no sweep yet; this makes one: {MAIN_COMMAND}")


def is_entry(value: Any) -> bool:
    """Whether a value of ``trials`` names a trial. Its ids become names of folders, so no path is an id."""
    ids = [value.get("trial_id"), value.get("eval_id")] if isinstance(value, dict) else [None]
    return all(isinstance(part, str) and FOLDER_NAME.fullmatch(part) for part in ids)


def parse_entry(value: Mapping[str, object]) -> SweepEntry:
    """An element of ``trials`` for which :func:`is_entry` holds."""
    baseline = as_list(value.get("baseline"))
    overrides = value.get("overrides")
    return SweepEntry(
        trial_id=str(value["trial_id"]),
        eval_id=str(value["eval_id"]),
        kind=str(value.get("kind") or ""),
        label=str(value.get("label") or ""),
        baseline=(str(baseline[0]), str(baseline[1])) if len(baseline) == 2 else None,
        overrides=[str(text) for text in overrides] if isinstance(overrides, list) else None,
    )


def parse_sources(value: Any) -> Sources:
    """The ``sources`` of a sweep's file; {} for the file of an older version, which has none."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name): [str(fingerprint) for fingerprint in (prints if isinstance(prints, list) else [prints])]
        for name, prints in value.items()
        if prints
    }


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def to_seconds(started: Any) -> float:
    """An ISO time as seconds since 1970. A time without a zone is UTC; what is no time is older than any time."""
    try:
        moment = datetime.fromisoformat(started)
    except (TypeError, ValueError):
        return -math.inf
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- writing -----------------------------------------------------------------------------------------------------


def name_sweep(plan: Plan) -> str:
    """The name given in the config, or a short hash of the sorted trial ids."""
    return plan.trials[0].config.sweep_name or (
        f"sweep-{short_hash(sorted({trial.trial_id for trial in plan.trials}), 8)}"
    )


def record_sweep(plan: Plan, runs: Path, name: str, command: str, provenance: Mapping[str, object] | None) -> None:
    """Write the sweep's file for this run of the plan. A name that was used before keeps its other trials.

    A trial that is evaluated anew is listed with its new evaluation only, because two evaluations cannot be ranked
    together. ``sources`` and ``provenance`` are those of this run; older rows of the sweep can differ from both.

    Args:
        provenance: ``collect_code_state()`` where the run has work to do. None where it has none: the file then keeps
            the provenance of the run before, and is not written at all if nothing else changed.
    """
    before = read_sweep_file(runs, name) or SweepFile(name)
    entries = list_entries(plan)
    replaced = {entry.trial_id for entry in entries}
    replaced |= {hash_invalid_trial(trial.config) for trial in plan.trials}  # these points were invalid and now work
    kept = [entry for entry in before.trials if entry.trial_id not in replaced]
    trials = sorted([*kept, *entries], key=lambda entry: entry.kind)  # stable; baselines come first
    sources = {**before.sources, **list_sources(plan)}
    if (trials, sources) == (before.trials, before.sources) and provenance is None:
        return
    sweep = SweepFile(
        name=name,
        command=command,
        started=datetime.now(UTC).isoformat(timespec="microseconds"),
        varied=list(dict.fromkeys([*before.varied, *plan.varied])),
        sources=sources,
        trials=trials,
        split=plan.trials[0].config.eval.split,
        provenance=provenance or before.provenance,
    )
    files.write_json(files.sweep_file(runs, name), to_json(sweep))


def is_recorded(plan: Plan, runs: Path, name: str) -> bool:
    """Whether the sweep's file lists every trial of the plan, with its label, and the plan's present sources."""
    sweep = read_sweep_file(runs, name) or SweepFile(name)
    listed = {(*entry.key, entry.label) for entry in sweep.trials}
    wanted = {(*row.key, row.label) for row in [*plan.trials, *plan.invalid]}
    # Sources can change and change back: the trials' ids are then all listed, and the recorded sources are the others.
    return wanted <= listed and list_sources(plan).items() <= sweep.sources.items()


def list_entries(plan: Plan) -> list[SweepEntry]:
    """An entry for every trial and every invalid point of the plan."""
    entries = [
        SweepEntry(
            trial.trial_id,
            trial.eval_id,
            trial.kind,
            trial.label,
            trial.baseline,
            plan.overrides.get(trial.key, []),
        )
        for trial in plan.trials
    ]
    return entries + [SweepEntry(point.trial_id, point.eval_id, "trial", point.label) for point in plan.invalid]


def list_sources(plan: Plan) -> Sources:
    """The fingerprints that the names of the plan's models and data sets have now."""
    fingerprints: dict[str, set[str]] = {}
    for trial in plan.trials:
        for kind, group in (("model", trial.config.model), ("data", trial.config.data)):
            fingerprints.setdefault(f"{kind} {group.name}", set()).add(getattr(trial.facts, kind).fingerprint)
    return {name: sorted(prints) for name, prints in fingerprints.items()}


def to_json(sweep: SweepFile) -> dict[str, object]:
    """The sweep as its file holds it: what is unknown, and the usual split, are left out."""
    content: dict[str, object] = {name: getattr(sweep, name) for name in ("name", "command", "started", "varied")}
    content["sources"] = {name: prints[0] if len(prints) == 1 else prints for name, prints in sweep.sources.items()}
    if sweep.split != "validation":
        content["split"] = sweep.split
    if sweep.provenance:
        content["provenance"] = sweep.provenance
    entries = [dataclasses.asdict(entry) for entry in sweep.trials]
    content["trials"] = [
        {name: value for name, value in entry.items() if name != "overrides" or value is not None} for entry in entries
    ]
    return content
