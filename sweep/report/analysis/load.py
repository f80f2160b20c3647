"""Read the files of a sweep into trials and configurations.

A sweep that is half done has a report too: whatever is missing or unreadable is None. This module neither compares
trials nor writes values for people.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.runs.records import Provenance, TrialRecord, read_number
from lora_sweep.runs.results import load_record
from lora_sweep.scoring.metrics import METRICS
from sweep.report.analysis.configurations import (
    FIELDS_BY_KEY,
    PENDING,
    Configuration,
    Number,
    Trial,
    TrialSummary,
    fold_seeds,
    look_up,
)
from sweep.store.drift import find_row_drift
from sweep.store.sweep_file import Sources, SweepEntry, SweepFile, load_sweep_file


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep's file with the results of its trials, in the order of the file.

    Attributes:
        varied: config keys that differ between trials.
        sources: the fingerprints of each model and data set, by name, when the sweep last ran; {} in an old file.
    """

    name: str
    command: str
    started: str
    varied: list[str]
    sources: Sources
    trials: list[Trial]
    configurations: list[Configuration]


def load_sweep(runs: Path, name: str) -> Sweep:
    """The sweep ``name`` with every trial.

    Raises:
        Refused: as :func:`sweep.store.sweep_file.load_sweep_file`.
    """
    file = load_sweep_file(runs, name)
    trials, configurations = fold_seeds([load_trial(runs, file, entry) for entry in file.trials])
    return Sweep(name, file.command, file.started, file.varied, file.sources, trials, configurations)


def load_trial(runs: Path, file: SweepFile, entry: SweepEntry) -> Trial:
    """Read one trial. If its files cannot be read, the trial is ``failed``, and the report goes on."""
    try:
        record = load_record(runs, entry.trial_id, entry.eval_id, entry.label)
    except (ValueError, OSError, RecursionError) as error:
        reason = f"its files cannot be read: {type(error).__name__}: {error}".replace(str(runs.resolve()), "runs")
        record = TrialRecord(entry.trial_id, entry.eval_id, label=entry.label, status="failed", reason=reason)
    made_by = Provenance.from_json(file.provenance)
    drift = find_row_drift(record.config, record.training, record.evaluation, file.sources, made_by)
    summary = summarize_record(record, (entry.kind or record.kind) != "baseline", file.varied, drift)
    return Trial(summary, record, entry.baseline, entry.overrides or [])


def summarize_record(record: TrialRecord, is_trial: bool, varied: list[str], drift: list[str]) -> TrialSummary:
    """The settings and numbers of one trial. A baseline has no adapter, so the fields of an adapter are None."""
    config, training, evaluation = record.config, record.training, record.evaluation
    measured = training if is_trial else evaluation  # a baseline's memory is that of generation
    targets = training.targets or look_up(config, "lora.targets")
    bits = training.bits or (read_number(look_up(config, "quant.bits")) if is_trial else evaluation.bits)
    lora = {key: read_number(look_up(config, f"lora.{key}")) for key in ("r", "alpha", "dropout")}
    return TrialSummary(
        trial_id=record.trial_id,
        eval_id=record.eval_id,
        kind="trial" if is_trial else "baseline",
        label=record.label or record.trial_id,
        status=record.status or PENDING,
        reason=record.reason,
        drift=tuple(drift),
        base=read_text(look_up(config, "model.name")),
        data=read_text(look_up(config, "data.name")),
        template=training.template or read_text(look_up(config, "data.template")),
        r=lora["r"] if is_trial else None,
        alpha=lora["alpha"] if is_trial else None,
        dropout=lora["dropout"] if is_trial else None,
        learning_rate=read_number(look_up(config, "train.learning_rate")) if is_trial else None,
        targets=targets if is_trial and isinstance(targets, str | list) else None,
        target_modules=training.target_modules if is_trial else None,
        bits=bits,
        eval_bits=evaluation.bits,
        seed=read_number(config.get("seed")) if is_trial else None,
        trainable_params=training.trainable_params,
        steps=training.steps if is_trial else None,
        train_seconds=training.train_seconds if is_trial else None,
        tokens_per_second=training.tokens_per_second if is_trial else None,
        train_loss=training.train_loss if is_trial else None,
        validation_loss=evaluation.validation_loss,
        neutral_loss=evaluation.neutral_loss,
        peak_memory_bytes=measured.peak_memory_bytes,
        peak_gpu_memory_bytes=measured.peak_gpu_memory_bytes,
        gpu_utilization_percent=training.gpu_utilization_percent if is_trial else None,
        adapter_bytes=training.adapter_bytes if is_trial else None,
        generate_seconds=evaluation.generate_seconds,
        generate_tokens_per_second=evaluation.generate_tokens_per_second,
        device=training.provenance.device or evaluation.provenance.device,
        dtype=training.provenance.dtype or evaluation.provenance.dtype,
        metrics=record.metric_means,
        settings={key: read_setting(config, key) for key in list_extra_keys(varied)},
    )


def list_metrics(sweep: Sweep) -> list[str]:
    """The names in METRICS, then the names of further metrics that a trial has, sorted."""
    names = {name for trial in sweep.trials for name in trial.summary.metrics}
    return [*METRICS, *sorted(names - set(METRICS))]


def list_extra_keys(varied: list[str]) -> list[str]:
    """Varied config keys that no other column shows, such as ``train.max_steps``."""
    return [key for key in varied if key not in FIELDS_BY_KEY]


def read_setting(config: dict[str, object], key: str) -> object:
    """The value of a varied key.

    A group is shown as its name, and a path as its last part, because a report names no folders.
    """
    value = look_up(config, key)
    if isinstance(value, dict):
        value = value.get("name")
    if key.endswith(".path") and isinstance(value, str):
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def read_text(value: object) -> str | None:
    return None if value is None else str(value)


def score_references(sweep: Sweep) -> dict[str, Number | None]:
    """The metrics of the reference texts, which are the top of the scale.

    They come from the first trial that has them; trials with the sweep's present data are tried first.
    """
    for trial in sorted(sweep.trials, key=lambda trial: trial.summary.is_outdated):
        if trial.record.scores.references:
            return {**trial.record.scores.references}
    return {}
