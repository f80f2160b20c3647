"""The labels of trials and baselines, and the configuration keys that vary between trials."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lora_sweep.config.schema import Config

LABELLED_KEYS = ("lora.r", "lora.targets", "quant.bits", "quant.double_quant")  # not repeated among varied keys


def label_trial(config: Config, compute_bytes: int | None, varied: Sequence[str]) -> str:
    """The label of a trial, as ``r=8 attn 4bit seed=1``: r, targets and bits, then all other values that vary.

    Args:
        compute_bytes: bytes of one number in the dtype that the model computes in; None if that is not known.
        varied: from :func:`list_varied_keys`.
    """
    targets = config.lora.targets
    words = [f"r={config.lora.r}", "+".join(map(str, targets)) if isinstance(targets, list) else str(targets)]
    further_keys = [key for key in varied if key not in LABELLED_KEYS]
    return " ".join([*words, *label_bits(config, compute_bytes), *label_values(config, further_keys)])


def label_baseline(config: Config, compute_bytes: int, varied: Sequence[str]) -> str:
    """The label of a baseline: its bits, then the values that vary in its model, its prompts and its decoding."""
    keys = [key for key in varied if key.partition(".")[0] in ("model", "data", "eval")]
    keys = [key for key in keys if key not in ("data.template", "eval.quant", "eval.baseline_templates")]
    keys += [key for key in varied if key == "train.max_length"]  # the rows of the validation loss are cut to it
    words = ["baseline", *label_bits(config, compute_bytes), *label_values(config, keys)]
    has_templates = config.eval.baseline_templates or "data.template" in varied
    return " ".join([*words, *([config.data.template] if has_templates else [])])


def label_bits(config: Config, compute_bytes: int | None) -> list[str]:
    """The bits of the base, as ``["4bit"]``; [] if the base is not quantized and its compute dtype is unknown."""
    bits = config.quant.bits or 8 * (compute_bytes or 0)
    return [f"{bits}bit"] if bits else []


def label_values(config: Config, keys: Sequence[str]) -> list[str]:
    """``key=value`` for each key with a value, with only the last part of the key. ``data.name`` becomes ``data``."""
    values = {key: value for key in keys if (value := find_config_value(config, key)) is not None}
    return [f"{key.removesuffix('.name').rpartition('.')[2]}={value}" for key, value in values.items()]


# --- keys that vary ----------------------------------------------------------------------------------------------


def list_varied_keys(configs: Sequence[Config]) -> list[str]:
    """The keys with different values in ``configs``, in the schema's order.

    If ``model.name`` or ``data.name`` varies, keys that only follow from the name are not listed.
    """
    groups = [name for name in vars(configs[0]) if len({repr(getattr(config, name)) for config in configs}) > 1]
    flat = [flatten_tree({name: to_plain_tree(getattr(config, name)) for name in groups}) for config in configs]

    def count_values(*keys: str) -> int:
        return len({repr([tree.get(key) for key in keys]) for tree in flat})

    keys = [key for key in dict.fromkeys(key for tree in flat for key in tree) if count_values(key) > 1]
    names = {"model": "model.name", "data": "data.name"}
    return [
        key
        for key in keys
        if (name := names.get(key.partition(".")[0])) not in keys
        or key == name
        or count_values(name, key) > count_values(name)
    ]


def find_config_value(config: Config, key: str) -> Any:
    """The leaf at a dotted path, as in :func:`flatten_tree`; None if there is no leaf."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    if isinstance(node, list):
        return [to_plain_tree(item) for item in node]
    return None if dataclasses.is_dataclass(node) or (isinstance(node, dict) and node) else node


def flatten_tree(value: object, prefix: str = "") -> dict[str, object]:
    """A tree of dicts as one dict from dotted paths to leaves."""
    if isinstance(value, dict) and value:
        return {k: v for key, sub in value.items() for k, v in flatten_tree(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def to_plain_tree(value: Any) -> Any:
    """A dataclass as a dict; any other value unchanged."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
