"""The file runs/sweeps/<name>.json: a sweep's trials, its command, and the sources and the code that it ran with.

Every other module reads and writes this file with the functions below. The results of a trial are not in it, but in
the folder of the trial.
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
MAX_LISTED_SWEEPS = 20  # in an error message
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
Sources = dict[str, list[str]]  # "data catalogue": its fingerprints; several if trials change the data's settings


@dataclass(frozen=True)
class SweepEntry:
    """One trial or baseline in the sweep's file.

    Attributes:
        kind: ``trial`` or ``baseline``; empty if the file has no kind.
        label: the trial's name for people; empty if the file has no label.
        baseline: the key of the trial's baseline, if it has one.
        overrides: what a person types to run this trial alone; None if the file has none.
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
        sources: the fingerprints of the models and data sets in the last run.
        trials: baselines first.
        split: the split that the texts are scored on: ``validation``, or ``test`` for a sweep of ``sweep.confirm``.
        provenance: versions and code of the last run that had work to do; None if an older version wrote the file.
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
    """The content of the sweep's file; None if there is no file, or if it is torn.

    Raises:
        Refused: the trials in the file have no valid ids.
    """
    content = files.read_json(files.sweep_file(runs, name))
    if content is None:
        return None
    entries = content.get("trials", [])
    if not isinstance(entries, list) or not all(is_entry(entry) for entry in entries):
        raise Refused(f"sweep {name!r}", "has a file that does not list a valid trial_id and eval_id for each trial")
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
    """The content of the sweep's file.

    Raises:
        Refused: no sweep has this name, or the trials in its file have no valid ids.
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
    """The names of the sweeps in ``runs``, the latest first."""
    started = []
    for path in (runs / "sweeps").glob("*.json"):
        content = files.read_json(path)
        if content is not None:
            started.append((to_seconds(content.get("started")), path.stem))
    return [name for _, name in sorted(started, reverse=True)]


def find_newest_sweep(runs: Path) -> str:
    """The name of the sweep that was started last. A sweep on the test split is chosen only if there is no other.

    Raises:
        Refused: there is no sweep. The message has a command that makes one.
    """
    names = list_sweeps(runs)
    if not names:
        raise make_no_sweep_error(runs)
    splits = ((files.read_json(files.sweep_file(runs, name)) or {}).get("split") for name in names)
    return next((name for name, split in zip(names, splits, strict=True) if split != "test"), names[0])


def make_no_sweep_error(runs: Path) -> Refused:
    """The refusal for a runs folder without sweeps."""
    return Refused(str(runs), f"holds no sweep yet; this makes one: {MAIN_COMMAND}")


def is_entry(value: Any) -> bool:
    """Whether an element of ``trials`` has valid ids. An id becomes the name of a folder, so it must not be a path."""
    ids = [value.get("trial_id"), value.get("eval_id")] if isinstance(value, dict) else [None]
    return all(isinstance(part, str) and FOLDER_NAME.fullmatch(part) for part in ids)


def parse_entry(value: Mapping[str, object]) -> SweepEntry:
    """The entry in an element of ``trials`` that :func:`is_entry` accepts."""
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
    """The ``sources`` of a sweep's file; {} if an older version wrote the file without them."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name): [str(fingerprint) for fingerprint in (prints if isinstance(prints, list) else [prints])]
        for name, prints in value.items()
        if prints
    }


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def to_seconds(started: Any) -> float:
    """An ISO time in seconds since 1970; minus infinity for any other value. A time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(started)
    except (TypeError, ValueError):
        return -math.inf
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- writing -----------------------------------------------------------------------------------------------------


def name_sweep(plan: Plan) -> str:
    """The sweep's name: ``sweep_name`` of the configuration, else a short hash of the sorted trial ids."""
    return plan.trials[0].config.sweep_name or (
        f"sweep-{short_hash(sorted({trial.trial_id for trial in plan.trials}), 8)}"
    )


def record_sweep(plan: Plan, runs: Path, name: str, command: str, provenance: Mapping[str, object] | None) -> None:
    """Write the sweep's file for this run of the plan. If the file exists, its other trials stay in it.

    A trial with a new evaluation is listed with this evaluation only, because two evaluations cannot be ranked
    together. ``sources`` and ``provenance`` are those of this run; older rows of the sweep can have others.

    Args:
        provenance: ``collect_code_state()`` if the run has work to do, else None. With None the file keeps the
            provenance of the run before, and is written only if something else changed.
    """
    before = read_sweep_file(runs, name) or SweepFile(name)
    entries = list_entries(plan)
    replaced = {entry.trial_id for entry in entries}
    replaced |= {hash_invalid_trial(trial.config) for trial in plan.trials}  # points that were invalid and now work
    kept = [entry for entry in before.trials if entry.trial_id not in replaced]
    trials = sorted([*kept, *entries], key=lambda entry: entry.kind)  # a stable sort: baselines come first
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
    # Data can change and change back. All ids are then listed, but the recorded sources are not the present ones.
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
    """The present fingerprints of the plan's models and data sets, by their names."""
    fingerprints: dict[str, set[str]] = {}
    for trial in plan.trials:
        for kind, group in (("model", trial.config.model), ("data", trial.config.data)):
            fingerprints.setdefault(f"{kind} {group.name}", set()).add(getattr(trial.facts, kind).fingerprint)
    return {name: sorted(prints) for name, prints in fingerprints.items()}


def to_json(sweep: SweepFile) -> dict[str, object]:
    """The content of the sweep's file as JSON. Unknown values and the split ``validation`` are left out."""
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
