"""Overrides to configs: the points of a grid or a list, composed by Hydra and given as dataclasses.

Hydra composes once for each choice of groups (0.1 s each); plain values are then set on copies, so that a grid of a
thousand points takes seconds.
"""

import copy
import itertools
import json
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from lora_sweep.config import Config, config_from_json
from lora_sweep.errors import Refused

CONFIG_NAME = "base"


def points(
    loader: ConfigLoader, arguments: Sequence[str], params: dict[str, Any], rows: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Every trial's overrides: the product of all swept values, times the rows where an experiment lists some.

    Args:
        arguments: the command line's overrides, as ``lora.r=8,16``.
        params: an experiment's swept values, as ``{"lora.r": "8,16"}``; the command line wins.
        rows: an experiment's trials, each a list of overrides; the command line wins.
    """
    parser = OverridesParser.create(config_loader=loader)
    typed = parser.parse_overrides(list(arguments))
    taken = {override.get_key_element() for override in typed}
    swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in taken])
    product = [list(point) for point in itertools.product(*(choices(o) for o in [*swept, *typed]))]
    if not rows:
        return product
    listed = [
        [o.input_line or "" for o in parser.parse_overrides(list(r)) if o.get_key_element() not in taken] for r in rows
    ]
    return [[*row, *point] for row in listed for point in product]


def choices(override: Override) -> list[str]:
    """One override for each value that it sweeps over."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise Refused(f"{key}={override.get_value_element_as_str()}", "has no list of values: a grid needs one")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def compose_points(
    loader: ConfigLoader, base_overrides: Sequence[str], trials: Sequence[Sequence[str]]
) -> list[Config]:
    """The config of each trial.

    Args:
        base_overrides: overrides of Hydra itself, the same for all.
        trials: overrides as :func:`points` gives them.

    Raises:
        HydraException, OmegaConfBaseException: a key, group or value does not fit the schema.
    """
    parser = OverridesParser.create(config_loader=loader)
    composed: dict[tuple[str, ...], tuple[DictConfig, Config]] = {}
    typed_values: dict[str, Any] = {}
    configs = []
    for trial in trials:
        parsed = parser.parse_overrides(list(trial))
        structural = tuple(o.input_line or "" for o in parsed if is_structural(o, loader))
        if structural not in composed:
            composed[structural] = compose_groups(loader, [*base_overrides, *structural])
        tree, config = composed[structural]
        config = copy.deepcopy(config)
        for override in parsed:
            if not is_structural(override, loader):
                memo = json.dumps([structural, override.input_line])
                if memo not in typed_values:
                    typed_values[memo] = typed_value(tree, override)
                set_value(config, override.key_or_group, copy.deepcopy(typed_values[memo]))
        configs.append(config)
    return configs


def is_structural(override: Override, loader: ConfigLoader) -> bool:
    """Whether Hydra must compose anew: a group's choice, an added or a deleted key."""
    return override.is_add() or override.is_delete() or bool(loader.get_group_options(override.key_or_group))


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
    *parents, last = key.split(".")
    node: Any = config
    for name in parents:
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    if isinstance(node, dict):
        node[last] = value
    else:
        setattr(node, last, value)
