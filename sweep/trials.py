"""What a plan holds: its trials and baselines, and what a person calls each of them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_sweep.config import Config
from lora_sweep.facts import Facts
from lora_sweep.footprint import Forecast

Key = tuple[str, str]  # trial id, evaluation id


@dataclass(frozen=True)
class Planned:
    """One trial or baseline, ready for a worker."""

    trial_id: str
    eval_id: str
    kind: str
    label: str
    config: Config
    facts: Facts
    target_modules: list[str]
    trainable_params: int
    forecast: Forecast
    identity: dict[str, Any]
    baseline: Key | None = None  # of a trial: its base, untuned, asked in the same form

    @property
    def key(self) -> Key:
        return self.trial_id, self.eval_id


@dataclass(frozen=True)
class Plan:
    """The trials of one command, baselines first.

    ``points`` holds the key of each point of the command, in its order; two points may share a trial.
    """

    trials: list[Planned]
    points: list[Key]
    varied: list[str]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as {dotted path: leaf}."""
    if isinstance(value, dict) and value:
        return {k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def varied_keys(configs: list[Config]) -> list[str]:
    """The keys whose values differ between ``configs``, in the schema's order.

    What follows from a model's or a data set's name varies with it, and is not listed beside it.
    """
    flat = [flatten(dataclasses.asdict(config)) for config in configs]

    def values(*keys: str) -> int:
        return len({json.dumps([tree.get(key) for key in keys]) for tree in flat})

    keys = [key for key in dict.fromkeys(key for tree in flat for key in tree) if values(key) > 1]
    names = {"model": "model.name", "data": "data.name"}
    return [
        key
        for key in keys
        if (name := names.get(key.partition(".")[0])) not in keys or key == name or values(name, key) > values(name)
    ]


def varied_values(config: Config, keys: Sequence[str]) -> list[str]:
    """``last part of the key=value`` for each key that has a value; a name counts for its group."""
    flat = flatten(dataclasses.asdict(config))
    shown = {key: flat[key] for key in keys if flat.get(key) is not None}
    return [f"{key.removesuffix('.name').rpartition('.')[2]}={value}" for key, value in shown.items()]


def bits_name(config: Config, facts: Facts) -> str:
    return f"{config.quant.bits or 8 * facts.compute_bytes}bit"


def trial_label(config: Config, facts: Facts, varied: list[str]) -> str:
    """What a person calls the trial: r, targets and bits, and whatever else varies."""
    targets = config.lora.targets if isinstance(config.lora.targets, str) else "+".join(config.lora.targets)
    shown = [f"r={config.lora.r}", targets, bits_name(config, facts)]
    others = [key for key in varied if key not in ("lora.r", "lora.targets", "quant.bits", "quant.double_quant")]
    return " ".join([*shown, *varied_values(config, others)])


def baseline_label(config: Config, facts: Facts, varied: list[str]) -> str:
    """What a person calls the baseline: its bits, and what varies of its model, its prompts and its decoding."""
    keys = [key for key in varied if key.partition(".")[0] in ("model", "data", "eval")]
    keys = [key for key in keys if key not in ("data.template", "eval.quant", "eval.baseline_templates")]
    keys += [key for key in varied if key == "train.max_length"]  # rows of the validation loss are cut to it
    shown = ["baseline", bits_name(config, facts), *varied_values(config, keys)]
    forms = config.eval.baseline_templates or "data.template" in varied
    return " ".join([*shown, *([config.data.template] if forms else [])])
