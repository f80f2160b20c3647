"""A sweep's files as plain rows: one dict a trial, its keys spelt as the columns of report.csv.

Owns what a row holds and which sweep is the newest. Does not know how a value is written for people (``show``)
and does not compare rows. Unknown is None. Whatever the files hold, a row comes out: a half-done sweep is a report.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.runs.records import Provenance, TrialRecord, TrialResult
from lora_sweep.runs.results import load_record
from lora_sweep.scoring.metrics import METRICS
from sweep.report.analysis.configurations import Entry, fold
from sweep.report.analysis.configurations import Row as Row  # re-exported: a row of the table
from sweep.store.drift import find_row_drift
from sweep.store.sweep_file import Sources, SweepEntry, load_sweep_file

PENDING = "pending"  # shown while there is no outcome; no status of its own

# The varied keys that a column shows already; any other varied key becomes a column of its own.
SHOWN_KEYS = {
    "lora.r": "r",
    "lora.alpha": "alpha",
    "lora.dropout": "dropout",
    "lora.targets": "targets",
    "quant": "bits",
    "quant.bits": "bits",
    "seed": "seed",
    "train.learning_rate": "learning_rate",
    "model.name": "base",
    "data.name": "data",
    "data.template": "template",
    "eval.quant": "eval_bits",
}
LARGEST = 1e18  # no number of a trial comes near it; JSON can hold integers that no float can

# Of report.csv, in order; between the two come the other metrics.
COLUMNS = (
    "trial_id kind r alpha targets target_modules bits seed status quality validation_loss trainable_params "
    "train_seconds tokens_per_second peak_memory_bytes adapter_bytes "
    "eval_id label reason drift dropout learning_rate base data template eval_bits steps train_loss "
    "neutral_loss forgetting"
)
RANKING_COLUMNS = "quality_ci_low quality_ci_high delta_baseline delta_best tied_with_best verdict"
LAST_COLUMNS = "device dtype peak_gpu_memory_bytes gpu_utilization_percent generate_seconds generate_tokens_per_second"


@dataclass(frozen=True)
class Sweep:
    """A sweep file with the results of its trials, in the file's order (``rows`` and ``results`` run parallel).

    Attributes:
        sources: what the names of models and data meant when the sweep last ran; {} in an older file.
        entries: the rows with those that differ in their seed alone as one.
        overrides: of each row, what a person types to get it; [] in an older file.
    """

    name: str
    command: str
    started: str
    varied: list[str]
    results: list[TrialRecord]
    rows: list[Row]
    sources: Sources = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    overrides: list[list[str]] = field(default_factory=list)


def load_sweep(runs: Path, name: str) -> Sweep:
    """The sweep ``name`` with every row.

    Raises:
        Refused: as :func:`load_sweep_file`.
    """
    file = load_sweep_file(runs, name)
    results = [_load(runs, entry) for entry in file.trials]
    kinds = [entry.kind or result.kind for entry, result in zip(file.trials, results, strict=True)]
    rows = [_row(result, kind, file.varied) for result, kind in zip(results, kinds, strict=True)]
    made = Provenance.from_json(file.provenance)
    for row, entry, result in zip(rows, file.trials, results, strict=True):
        row["baseline"] = list(entry.baseline) if entry.baseline else None
        row["drift"] = find_row_drift(result.config, result.training, result.evaluation, file.sources, made)
    overrides = [entry.overrides or [] for entry in file.trials]
    return Sweep(
        name,
        file.command,
        file.started,
        file.varied,
        results,
        rows,
        file.sources,
        fold(rows, results),
        overrides,
    )


def columns(sweep: Sweep) -> list[str]:
    """Column names of report.csv, in order."""
    metrics = [name for name in metric_names(sweep) if name != "quality"]
    return [*COLUMNS.split(), *RANKING_COLUMNS.split(), *metrics, *LAST_COLUMNS.split(), *extra_keys(sweep.varied)]


def metric_names(sweep: Sweep) -> list[str]:
    """METRICS, then any other metric that a row has, by name."""
    found = {name for result in sweep.results for name in result.metric_means}
    return [*METRICS, *sorted(found - set(METRICS))]


def extra_keys(varied: list[str]) -> list[str]:
    """Varied keys that no other column shows, such as ``train.max_steps``."""
    return [key for key in varied if key not in SHOWN_KEYS]


def dig(tree: Any, path: str) -> Any:
    """The value at a dotted ``path`` of nested dicts, or None."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: Any) -> float | int | None:
    """``value`` when it is a finite number of a plausible size, True as 1, else None."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float) and abs(value) < LARGEST else None


def is_other(row: Row) -> bool:
    """Whether a row was made from another model or other data than its sweep has now."""
    return bool({"model", "data"} & set(row["drift"]))


def references(sweep: Sweep) -> dict[str, float | int | None]:
    """The metrics of the reference texts themselves, from the first row that has them: the top of the scale."""
    of_now_first = sorted(zip(sweep.rows, sweep.results, strict=True), key=lambda pair: is_other(pair[0]))
    for _, result in of_now_first:
        if result.scores.references:
            return result.scores.references
    return {}


def _load(runs: Path, entry: SweepEntry) -> TrialRecord:
    """One trial. A file that cannot be read makes a failed row, not a failed report."""
    trial_id, eval_id, label = entry.trial_id, entry.eval_id, entry.label
    try:
        return load_record(runs, trial_id, eval_id, label)
    except (ValueError, OSError, RecursionError) as error:
        reason = f"its files cannot be read: {type(error).__name__}: {error}".replace(str(runs.resolve()), "runs")
        return TrialRecord(trial_id, eval_id, label=label, status="failed", reason=reason)


def _row(result: TrialRecord, kind: str, varied: list[str]) -> Row:
    config, training, evaluation = result.config, result.training, result.evaluation
    is_trial = kind != "baseline"
    measured = training if is_trial else evaluation  # a baseline trains nothing: its memory is that of generating
    row: Row = {
        "trial_id": result.trial_id,
        "kind": "trial" if is_trial else "baseline",
        "bits": training.bits or (number(dig(config, "quant.bits")) if is_trial else evaluation.bits),
        "status": result.status or PENDING,
        "trainable_params": training.trainable_params,
        "peak_memory_bytes": measured.peak_memory_bytes,
        "peak_gpu_memory_bytes": measured.peak_gpu_memory_bytes,
        "gpu_utilization_percent": training.gpu_utilization_percent if is_trial else None,
        "eval_id": result.eval_id,
        "label": result.label or result.trial_id,
        "reason": result.reason,
        "base": dig(config, "model.name"),
        "data": dig(config, "data.name"),
        "template": training.template or dig(config, "data.template"),
        "eval_bits": evaluation.bits,
        "validation_loss": evaluation.validation_loss,
        "neutral_loss": evaluation.neutral_loss,
        "generate_seconds": evaluation.generate_seconds,
        "generate_tokens_per_second": evaluation.generate_tokens_per_second,
        "device": training.provenance.device or evaluation.provenance.device,
        "dtype": training.provenance.dtype or evaluation.provenance.dtype,
    }
    row.update(result.metric_means)
    row.update({key: _setting(config, key) for key in extra_keys(varied)})
    if is_trial:
        row.update(_training_cells(config, training))
    return row


def _training_cells(config: dict[str, Any], training: TrialResult) -> Row:
    """The cells that only a row with an adapter has."""
    cells: Row = {key: number(dig(config, f"lora.{key}")) for key in ("r", "alpha", "dropout")}
    cells["learning_rate"] = number(dig(config, "train.learning_rate"))
    cells["seed"] = number(config.get("seed"))
    cells["targets"] = training.targets or dig(config, "lora.targets")
    cells["target_modules"] = training.target_modules
    for key in ("train_seconds", "tokens_per_second", "adapter_bytes", "steps", "train_loss"):
        cells[key] = getattr(training, key)
    return cells


def _setting(config: dict[str, Any], key: str) -> Any:
    """The value of a varied key; of a group, its name; of a path, its last part (a report has no machine's paths)."""
    value = dig(config, key)
    if isinstance(value, dict):
        value = value.get("name")
    if key.endswith(".path") and isinstance(value, str):
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
