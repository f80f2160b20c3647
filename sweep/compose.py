"""Compose the configuration of each point of a command from its overrides, with Hydra.

One composition by Hydra takes 0.1 s. So Hydra composes once for each choice of groups, and plain values are set on
copies of the result: a grid of a thousand points takes seconds.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
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
    loader: ConfigLoader, base_overrides: Sequence[str], points: Sequence[Sequence[str]]
) -> list[Config]:
    """The configuration of each point.

    Args:
        base_overrides: the overrides of Hydra's own settings, the same for all points.
        points: the overrides of each point, from :func:`sweep.search.grid.list_points`.

    Raises:
        HydraException, OmegaConfBaseException: a key, group or value does not fit the schema.
        Refused: a point asks for scores on the test split. Scores that chose the winner cannot confirm it.
    """
    composer = PointComposer(loader, base_overrides)
    configs = [composer.compose_point(point) for point in points]
    if any(config.eval.split == "test" for config in configs):
        raise Refused("eval.split = test", "the test split is read once, by python -m sweep.confirm")
    return configs


@dataclass(frozen=True)
class Composition:
    """The result of Hydra for one choice of groups, as Hydra's tree and as a dataclass.

    Attributes:
        has_interpolation: whether a value refers to another, as ``${lora.r}`` does. Then only Hydra can change values.
    """

    tree: DictConfig
    config: Config
    has_interpolation: bool


class PointComposer:
    """Composes the points of one command. What several points share is composed once."""

    def __init__(self, loader: ConfigLoader, base_overrides: Sequence[str]) -> None:
        self._loader = loader
        self._base_overrides = list(base_overrides)
        parser = OverridesParser.create(config_loader=loader)
        self._parse = functools.cache(lambda line: parser.parse_overrides([line])[0])  # many points share few values
        self._is_group = functools.cache(lambda name: bool(loader.get_group_options(name)))  # 10 ms a call
        self._compositions: dict[tuple[str, ...], Composition] = {}
        self._values: dict[tuple[tuple[str, ...], str | None], Any] = {}

    def compose_point(self, point: Sequence[str]) -> Config:
        """The configuration of one point, given by its overrides."""
        overrides: list[Override] = [self._parse(line) for line in point]
        group_keys = {o.key_or_group for o in overrides if self.changes_structure(o)}
        structure = tuple(o.input_line or "" for o in overrides if o.key_or_group in group_keys)
        if structure not in self._compositions:
            tree, base = compose_groups(self._loader, [*self._base_overrides, *structure])
            self._compositions[structure] = Composition(tree, base, has_interpolation(tree))
        composition = self._compositions[structure]
        values = [override for override in overrides if override.key_or_group not in group_keys]
        if composition.has_interpolation or not all(can_be_set(composition.config, o) for o in values):
            return compose_groups(self._loader, [*self._base_overrides, *point])[1]
        config: Config = copy_tree(composition.config)
        for override in values:
            memo = (structure, override.input_line)
            if memo not in self._values:
                self._values[memo] = parse_value(composition.tree, override)
            set_value(config, override.key_or_group, copy.deepcopy(self._values[memo]))
        return config

    def changes_structure(self, override: Override) -> bool:
        """Whether the override selects a group, or adds or deletes a key: Hydra then has to compose again."""
        return override.type != OverrideType.CHANGE or self._is_group(override.key_or_group)


def has_interpolation(tree: DictConfig) -> bool:
    """Whether any value refers to another, as ``${lora.r}`` does."""
    return "${" in json.dumps(OmegaConf.to_container(tree, resolve=False))


def can_be_set(config: Config, override: Override) -> bool:
    """Whether the value refers to no other, and its key is in the tree: not in a list, nor below a null value."""
    parent = find_parent(config, override.key_or_group)
    return "${" not in str(override.input_line) and (isinstance(parent, dict) or dataclasses.is_dataclass(parent))


def compose_groups(loader: ConfigLoader, overrides: list[str]) -> tuple[DictConfig, Config]:
    """Hydra's tree and the configuration for conf/base.yaml and ``overrides``, without Hydra's own settings."""
    tree = loader.load_configuration(CONFIG_NAME, overrides=overrides, run_mode=RunMode.MULTIRUN)
    with open_dict(tree):
        del tree["hydra"]
    values = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    return tree, config_from_json({str(key): value for key, value in values.items()})


def parse_value(tree: DictConfig, override: Override) -> Any:
    """The value of the override, converted to the type in the schema by setting it on a copy of the composed tree."""
    changed = copy.deepcopy(tree)
    OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
    value = OmegaConf.select(changed, override.key_or_group)
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def set_value(config: Config, key: str, value: Any) -> None:
    """Set the value of ``key``, a dotted path in a tree of dataclasses and dicts."""
    node, last = find_parent(config, key), key.rpartition(".")[2]
    if isinstance(node, dict):
        node[last] = value
    else:
        setattr(node, last, value)


def find_parent(config: Config, key: str) -> Any:
    """The node that holds ``key``, a dotted path in a tree of dataclasses and dicts; None if there is no such node."""
    node: Any = config
    for name in key.split(".")[:-1]:
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    return node
