"""The settings and numbers of one trial, and configurations: trials that differ only in their seed.

This module decides which trials belong to one configuration, how the summary of a configuration is made from the
summaries of its trials, and the marks that name both in a report: B1, 1, 2; and 2a, 2b for two seeds of configuration
2. It does not compare configurations; ``comparison`` does.
"""

import dataclasses
import json
import statistics
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lora_sweep.runs.records import TrialRecord
from lora_sweep.scoring.metrics import METRICS

Kind: TypeAlias = Literal["trial", "baseline"]
Number: TypeAlias = float | int
Key: TypeAlias = tuple[str, str]  # trial id, evaluation id

OBJECTIVE = "quality"  # the metric that ranks
PENDING = "pending"  # shown for a trial without an outcome; no file holds this status
CONFIG_GROUPS = ("model", "data", "lora", "quant", "train", "eval")  # the rest of a config changes no number
PEAKS = ("peak_memory_bytes", "peak_gpu_memory_bytes")  # a configuration has the highest value of its trials
AVERAGED = (  # a configuration has the mean over its trials
    "train_seconds",
    "tokens_per_second",
    "adapter_bytes",
    "steps",
    "train_loss",
    "validation_loss",
    "neutral_loss",
    "generate_seconds",
    "generate_tokens_per_second",
    "gpu_utilization_percent",
)
# The summary's field for each config key that has one; any other varied key is in ``settings``.
FIELDS_BY_KEY = {
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


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """The settings and numbers of one trial. None is unknown; every number is finite.

    The summary of a configuration has the same fields: the means over its complete trials, the highest of their memory
    peaks, and the list of its seeds.

    Attributes:
        mark: its name in the report; empty until :func:`fold_seeds` has assigned it.
        drift: which of ``model``, ``data`` and ``code`` differ from those that the sweep last ran with.
        bits: bits of the base during training (of a baseline: during generation): 4, 8, 16 or 32.
        eval_bits: bits of the base during generation.
        peak_memory_bytes: during training; of a baseline, during generation.
        metrics: the mean over the prompts, by metric.
        settings: the values of varied config keys that have no field, by dotted key.
        missing_seeds: for a configuration, how many of its trials are not complete while others are.
    """

    mark: str = ""
    trial_id: str
    eval_id: str
    kind: Kind
    label: str
    status: str
    reason: str | None = None
    drift: tuple[str, ...] = ()
    base: str | None = None
    data: str | None = None
    template: str | None = None
    r: Number | None = None
    alpha: Number | None = None
    dropout: Number | None = None
    learning_rate: Number | None = None
    targets: str | list[str] | None = None
    target_modules: list[str] | None = None
    bits: Number | None = None
    eval_bits: Number | None = None
    seed: Number | list[Number | None] | None = None
    trainable_params: Number | None = None
    steps: Number | None = None
    train_seconds: Number | None = None
    tokens_per_second: Number | None = None
    train_loss: Number | None = None  # nats a token
    validation_loss: Number | None = None  # nats a token
    neutral_loss: Number | None = None  # nats a token
    peak_memory_bytes: Number | None = None
    peak_gpu_memory_bytes: Number | None = None
    gpu_utilization_percent: Number | None = None
    adapter_bytes: Number | None = None
    generate_seconds: Number | None = None
    generate_tokens_per_second: Number | None = None
    device: str | None = None
    dtype: str | None = None
    metrics: Mapping[str, Number | None] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    missing_seeds: int = 0

    @property
    def objective(self) -> Number | None:
        """The mean of the objective over the prompts."""
        return self.metrics.get(OBJECTIVE)

    @property
    def is_baseline(self) -> bool:
        return self.kind == "baseline"

    @property
    def is_complete(self) -> bool:
        return self.status == "complete"

    @property
    def is_failed(self) -> bool:
        return self.status not in ("complete", PENDING)

    @property
    def is_scored(self) -> bool:
        """Whether it can be ranked: complete, and with a number for the objective."""
        return self.is_complete and self.objective is not None

    @property
    def is_outdated(self) -> bool:
        """Whether it was made from another model or from other data than the sweep has now."""
        return bool({"model", "data"} & set(self.drift))

    def value(self, key: str) -> object:
        """The value of a column of the report: a field, a metric or a varied config key."""
        if key in METRICS or key in self.metrics:
            return self.metrics.get(key)
        if key in self.settings:
            return self.settings[key]
        return list(self.drift) if key == "drift" else getattr(self, key, None)


@dataclass(frozen=True)
class Trial:
    """One trial or baseline of a sweep: its summary, and the records of its files.

    Attributes:
        baseline: the key of the baseline that the sweep's file names for it.
        overrides: Hydra overrides that run this trial alone; [] if they were not recorded.
    """

    summary: TrialSummary
    record: TrialRecord
    baseline: Key | None = None
    overrides: list[str] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return self.summary.trial_id, self.summary.eval_id


@dataclass(frozen=True)
class Configuration:
    """Trials that differ only in their seed: one row of the ranking.

    Attributes:
        trials: in the order of their seeds.
        config: the groups of the trials' config that can change a number.
    """

    summary: TrialSummary
    trials: list[Trial]
    config: dict[str, object]


def look_up(tree: object, path: str) -> object:
    """The value at a dotted ``path`` in nested dicts; None if it is not there."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def fold_seeds(trials: Sequence[Trial]) -> tuple[list[Trial], list[Configuration]]:
    """Give every trial its mark, and fold trials that differ only in their seed into one configuration.

    Returns:
        The trials in the order given, and the configurations in the order of their first trials.
    """
    groups: dict[str, list[int]] = {}
    for index, trial in enumerate(trials):
        groups.setdefault(identify_configuration(trial), []).append(index)
    marked, configurations = list(trials), []
    counts: dict[Kind, int] = {"baseline": 0, "trial": 0}
    for group in groups.values():
        indices = sorted(group, key=lambda index: (read_sort_seed(trials[index].summary), index))
        kind = trials[indices[0]].summary.kind
        counts[kind] += 1
        mark = f"{'B' if kind == 'baseline' else ''}{counts[kind]}"
        for number, index in enumerate(indices):
            letter = name_seed(number) if len(indices) > 1 else ""
            summary = dataclasses.replace(trials[index].summary, mark=mark + letter)
            marked[index] = dataclasses.replace(trials[index], summary=summary)
        members = [marked[index] for index in indices]
        config = {key: value for key, value in members[0].record.config.items() if key in CONFIG_GROUPS}
        summary = summarize_trials([trial.summary for trial in members], mark)
        configurations.append(Configuration(summary, members, config))
    return marked, configurations


def identify_configuration(trial: Trial) -> str:
    """A text that is equal for trials that differ only in their seed.

    Trials that were made from different data or from different models have different texts.
    """
    config = {key: trial.record.config[key] for key in CONFIG_GROUPS if key in trial.record.config}
    if not config:
        return f"{trial.summary.trial_id}/{trial.summary.eval_id}"
    sources = sorted({"model", "data"} & set(trial.summary.drift)), trial.record.training.fingerprints
    return json.dumps([trial.summary.kind, config, sources], sort_keys=True, default=str)


def summarize_trials(summaries: list[TrialSummary], mark: str) -> TrialSummary:
    """The summary of a configuration: over its complete trials, or over all of them where none is complete."""
    if len(summaries) == 1:
        return summaries[0]
    complete = [summary for summary in summaries if summary.is_complete]
    shown = complete or summaries
    names = dict.fromkeys(name for summary in shown for name in summary.metrics)
    changes: dict[str, Any] = {
        "label": " ".join(word for word in summaries[0].label.split(" ") if not word.startswith("seed=")),
        "seed": [summary.seed for summary in summaries],
        "drift": tuple(dict.fromkeys(name for summary in summaries for name in summary.drift)),
        "missing_seeds": len(summaries) - len(complete) if complete else 0,
        "metrics": {name: average([summary.metrics.get(name) for summary in shown]) for name in names},
    }
    for name in AVERAGED:
        changes[name] = average([getattr(summary, name) for summary in shown])
    for name in PEAKS:
        peaks = [getattr(summary, name) for summary in shown]
        changes[name] = max((peak for peak in peaks if peak is not None), default=None)
    return dataclasses.replace(shown[0], mark=mark, **changes)


def average(values: Sequence[Number | None]) -> Number | None:
    """The exact mean of the known values; None if no value is known. Equal whole numbers stay whole."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return numbers[0] if len(set(numbers)) == 1 else float(statistics.mean(numbers))


def read_sort_seed(summary: TrialSummary) -> Number:
    """The seed to sort by; 0 if it is unknown."""
    return summary.seed if isinstance(summary.seed, int | float) else 0


def name_seed(number: int) -> str:
    """The letter of a seed in marks: ``a`` for the first seed of a configuration."""
    return string.ascii_lowercase[number] if number < 26 else f".{number + 1}"
