"""Which trials: every combination of the swept values, or a list of rows."""

import itertools
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from lora_sweep.errors import Refused


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
    for override in typed:
        if override.key_or_group == "experiment" and override.is_sweep_override():
            raise Refused(str(override.input_line), "is more than one: an experiment is a command's own list of trials")
    taken = {override.key_or_group for override in typed}
    swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in taken])
    product = [list(point) for point in itertools.product(*(choices(o) for o in [*swept, *typed]))]
    if not rows:
        return product
    for row in rows:
        if isinstance(row, str):
            raise Refused(f"hydra.sweeper.rows: {row}", f"must be a list of overrides, as in [{row}]")
    listed = [
        [o.input_line or "" for o in parser.parse_overrides(list(r)) if o.key_or_group not in taken] for r in rows
    ]
    return [[*row, *point] for row in listed for point in product]


def choices(override: Override) -> list[str]:
    """One override for each value that it sweeps over."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise Refused(str(override.input_line), "has no list of values: a grid needs one")
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise Refused(str(override.input_line), "stands for no value at all")
    return values
