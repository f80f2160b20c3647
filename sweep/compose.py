"""Overrides to configs: the points of a grid or a list, composed by Hydra and given as dataclasses.

Hydra composes once for each choice of groups (0.1 s each); plain values are then set on copies, so that a grid of a
thousand points takes seconds.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from lora_sweep.config.schema import Config, config_from_json
from lora_sweep.errors import Refused
from sweep.trials import copy_tree

CONFIG_NAME = "base"


def compose_points(
    loader: ConfigLoader, base_overrides: Sequence[str], trials: Sequence[Sequence[str]]
) -> list[Config]:
    """The config of each trial.

    Args:
        base_overrides: overrides of Hydra itself, the same for all.
        trials: overrides as :func:`points` gives them.

    Raises:
        HydraException, OmegaConfBaseException: a key, group or value does not fit the schema.
        Refused: a point would be scored on the test split, which then tells nothing of what is chosen by it.
    """
    parser = OverridesParser.create(config_loader=loader)
    parse = functools.cache(lambda line: parser.parse_overrides([line])[0])  # a grid has few values in many points
    is_group = functools.cache(lambda name: bool(loader.get_group_options(name)))  # 10 ms a call
    composed: dict[tuple[str, ...], tuple[DictConfig, Config, bool]] = {}
    typed_values: dict[tuple[Any, ...], Any] = {}
    configs = []
    for trial in trials:
        parsed: list[Override] = [parse(line) for line in trial]
        anew = {o.key_or_group for o in parsed if o.type != OverrideType.CHANGE or is_group(o.key_or_group)}
        structural = tuple(o.input_line or "" for o in parsed if o.key_or_group in anew)
        if structural not in composed:
            tree, config = compose_groups(loader, [*base_overrides, *structural])
            composed[structural] = tree, config, refers_to_others(tree)
        tree, config, follows = composed[structural]
        values = [override for override in parsed if override.key_or_group not in anew]
        if follows or not all(can_be_set(config, override) for override in values):
            configs.append(compose_groups(loader, [*base_overrides, *trial])[1])
            continue
        config = copy_tree(config)
        for override in values:
            memo = (structural, override.input_line)
            if memo not in typed_values:
                typed_values[memo] = typed_value(tree, override)
            set_value(config, override.key_or_group, copy.deepcopy(typed_values[memo]))
        configs.append(config)
    if any(config.eval.split == "test" for config in configs):
        raise Refused("eval.split = test", "the test split is read once, by python -m sweep.confirm")
    return configs


def refers_to_others(tree: DictConfig) -> bool:
    """Whether any value follows another, as ``${lora.r}`` does: only Hydra can compose such a point."""
    return "${" in json.dumps(OmegaConf.to_container(tree, resolve=False))


def can_be_set(config: Config, override: Override) -> bool:
    """Whether the value is plain, and its place is there: not in a list, nor below what is null or unknown."""
    parent = parent_node(config, override.key_or_group)
    return "${" not in str(override.input_line) and (isinstance(parent, dict) or dataclasses.is_dataclass(parent))


def compose_groups(loader: ConfigLoader, overrides: list[str]) -> tuple[DictConfig, Config]:
    tree = loader.load_configuration(CONFIG_NAME, overrides=overrides, run_mode=RunMode.MULTIRUN)
    with open_dict(tree):
        del tree["hydra"]
    values = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    return tree, config_from_json({str(key): value for key, value in values.items()})


def typed_value(tree: DictConfig, override: Override) -> Any:
    """The override's value as the schema's type, by setting it on a copy of the composed tree."""
    changed = copy.deepcopy(tree)
    OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
    value = OmegaConf.select(changed, override.key_or_group)
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def set_value(config: Config, key: str, value: Any) -> None:
    """Set ``key``, a dotted path, on a tree of dataclasses and dicts."""
    node, last = parent_node(config, key), key.rpartition(".")[2]
    if isinstance(node, dict):
        node[last] = value
    else:
        setattr(node, last, value)


def parent_node(config: Config, key: str) -> Any:
    """What holds ``key``, a dotted path through dataclasses and dicts; None where the path ends before."""
    node: Any = config
    for name in key.split(".")[:-1]:
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    return node
