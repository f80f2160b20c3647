"""The points of a grid: every combination of the swept values, for each row of an experiment."""

import itertools
from collections.abc import Mapping, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from lora_sweep.errors import Refused


def list_points(
    loader: ConfigLoader, arguments: Sequence[str], params: Mapping[str, object], rows: Sequence[Sequence[str]]
) -> list[list[str]]:
    """The overrides of each point: all combinations of the swept values, repeated for each row of an experiment.

    A key on the command line replaces the same key in ``params`` and ``rows``.

    Args:
        arguments: the command line's overrides, as ``lora.r=8,16``.
        params: an experiment's swept values, as ``{"lora.r": "8,16"}``.
        rows: the trials that an experiment lists, each as a list of overrides; empty if it lists none.

    Raises:
        Refused: the command line has several experiments, a row is not a list, or a swept key has no values.
        HydraException: an override cannot be parsed.
    """
    parser = OverridesParser.create(config_loader=loader)
    typed = parser.parse_overrides(list(arguments))
    for override in typed:
        if override.key_or_group == "experiment" and override.is_sweep_override():
            raise Refused(str(override.input_line), "names several experiments; a command can have only one")
    typed_keys = {override.key_or_group for override in typed}
    swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in typed_keys])
    product = [list(point) for point in itertools.product(*(expand_override(o) for o in [*swept, *typed]))]
    if not rows:
        return product
    for row in rows:
        if isinstance(row, str):
            raise Refused(f"hydra.sweeper.rows: {row}", f"must be a list of overrides, as in [{row}]")
    parsed_rows = [
        [o.input_line or "" for o in parser.parse_overrides(list(row)) if o.key_or_group not in typed_keys]
        for row in rows
    ]
    return [[*row, *point] for row in parsed_rows for point in product]


def expand_override(override: Override) -> list[str]:
    """An override for each value of a swept key; a list of one override for any other key.

    Raises:
        Refused: the swept key has no list of values, or an empty one.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise Refused(str(override.input_line), "has no list of values, and a grid needs one")
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise Refused(str(override.input_line), "has no values")
    return values
