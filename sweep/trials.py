"""What a plan holds: its trials, baselines and points that cannot work, and what a person calls each of them."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_sweep.config.identity import eval_identity, short_hash
from lora_sweep.config.schema import QUANT_BITS, Config
from lora_sweep.facts.facts import Facts
from lora_sweep.facts.memory import Forecast

Key = tuple[str, str]  # trial id, evaluation id


class Row:
    """What every row of a sweep has, whether it can run or not."""

    trial_id: str
    eval_id: str
    label: str

    @property
    def key(self) -> Key:
        return self.trial_id, self.eval_id


@dataclass(frozen=True)
class Planned(Row):
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


@dataclass(frozen=True)
class Invalid(Row):
    """A point of the command that cannot work, beside others that can: nothing to run.

    Attributes:
        config: the point's; a number that is not finite stands in it as a word, since no file of results can hold it.
        reason: the sentence with which it would be refused alone.
    """

    trial_id: str
    eval_id: str
    label: str
    config: Config
    reason: str


@dataclass(frozen=True)
class Plan:
    """The trials of one command, baselines first, and its points that cannot work.

    ``points`` holds the key of each point of the command, in its order; two points may share a trial. ``overrides``
    are what a person types to get a trial alone, where that is known.
    """

    trials: list[Planned]
    points: list[Key]
    varied: list[str]
    invalid: list[Invalid] = field(default_factory=list)
    overrides: dict[Key, list[str]] = field(default_factory=dict)


def with_overrides(plan: Plan, overrides: Sequence[Sequence[str]]) -> Plan:
    """The plan with the overrides of its points, in their order; of two points with one trial, the first's."""
    known: dict[Key, list[str]] = {}
    for key, point in zip(plan.points, overrides, strict=True):
        known.setdefault(key, list(point))
    return dataclasses.replace(plan, overrides=known)


def invalid_point(config: Config, compute_bytes: int | None, varied: list[str], reason: str) -> Invalid:
    """The row of a point that cannot work. Its ids are of the values as they were given: nothing of it is resolved.

    Args:
        compute_bytes: of a number in the compute dtype; None where no model of the plan is known.
    """
    label = trial_label(config, compute_bytes, varied)
    config = finite(config)
    given = dataclasses.asdict(config)
    bits_known = config.eval.quant in ("same", *QUANT_BITS)
    evaluation = eval_identity(config) if bits_known else given["eval"]
    return Invalid(invalid_id(config), short_hash(evaluation), label, config, reason)


def invalid_id(config: Config) -> str:
    """What names a point while it cannot work."""
    given = dataclasses.asdict(config)
    for key in ("tracking", "launch", "runs_dir", "sweep_name"):
        given.pop(key)
    return short_hash({"kind": "invalid", **given})


def finite(node: Any) -> Any:
    """A copy of a tree in which NaN and the infinities are words."""
    return copied(node, lambda leaf: str(leaf) if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def copied(node: Any, of_leaf: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """A tree of dataclasses, dicts and lists anew; as copy.deepcopy, in a tenth of its time."""
    if isinstance(node, dict):
        return {key: copied(value, of_leaf) for key, value in node.items()}
    if isinstance(node, list):
        return [copied(value, of_leaf) for value in node]
    if dataclasses.is_dataclass(node):
        same = copy.copy(node)
        vars(same).update({name: copied(value, of_leaf) for name, value in vars(node).items()})
        return same
    return of_leaf(node)


# --- what varies, and names ------------------------------------------------------------------------------------------


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as {dotted path: leaf}."""
    if isinstance(value, dict) and value:
        return {k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def plain(value: Any) -> Any:
    """A dataclass as a dict; anything else as it is."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def value_at(config: Config, key: str) -> Any:
    """The leaf at a dotted path, as :func:`flatten` would give it; None where there is no leaf."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    if isinstance(node, list):
        return [plain(each) for each in node]
    return None if dataclasses.is_dataclass(node) or (isinstance(node, dict) and node) else node


def varied_keys(configs: list[Config]) -> list[str]:
    """The keys whose values differ between ``configs``, in the schema's order.

    What follows from a model's or a data set's name varies with it, and is not listed beside it.
    """
    groups = [name for name in vars(configs[0]) if len({repr(getattr(config, name)) for config in configs}) > 1]
    flat = [flatten({name: plain(getattr(config, name)) for name in groups}) for config in configs]

    def values(*keys: str) -> int:
        return len({repr([tree.get(key) for key in keys]) for tree in flat})

    keys = [key for key in dict.fromkeys(key for tree in flat for key in tree) if values(key) > 1]
    names = {"model": "model.name", "data": "data.name"}
    return [
        key
        for key in keys
        if (name := names.get(key.partition(".")[0])) not in keys or key == name or values(name, key) > values(name)
    ]


def varied_values(config: Config, keys: Sequence[str]) -> list[str]:
    """``last part of the key=value`` for each key that has a value; a name counts for its group."""
    shown = {key: value for key in keys if (value := value_at(config, key)) is not None}
    return [f"{key.removesuffix('.name').rpartition('.')[2]}={value}" for key, value in shown.items()]


def bits_names(config: Config, compute_bytes: int | None) -> list[str]:
    """``4bit``; nothing where the base is stored as it computes, and in how many bits is unknown."""
    bits = config.quant.bits or 8 * (compute_bytes or 0)
    return [f"{bits}bit"] if bits else []


def trial_label(config: Config, compute_bytes: int | None, varied: list[str]) -> str:
    """What a person calls the trial: r, targets and bits, and whatever else varies."""
    targets = config.lora.targets
    shown = [f"r={config.lora.r}", "+".join(map(str, targets)) if isinstance(targets, list) else str(targets)]
    others = [key for key in varied if key not in ("lora.r", "lora.targets", "quant.bits", "quant.double_quant")]
    return " ".join([*shown, *bits_names(config, compute_bytes), *varied_values(config, others)])


def baseline_label(config: Config, compute_bytes: int, varied: list[str]) -> str:
    """What a person calls the baseline: its bits, and what varies of its model, its prompts and its decoding."""
    keys = [key for key in varied if key.partition(".")[0] in ("model", "data", "eval")]
    keys = [key for key in keys if key not in ("data.template", "eval.quant", "eval.baseline_templates")]
    keys += [key for key in varied if key == "train.max_length"]  # rows of the validation loss are cut to it
    shown = ["baseline", *bits_names(config, compute_bytes), *varied_values(config, keys)]
    forms = config.eval.baseline_templates or "data.template" in varied
    return " ".join([*shown, *([config.data.template] if forms else [])])
