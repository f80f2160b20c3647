"""What each varied key changes on average over the others, and where two of them change each other.

Owns the factors of a sweep and which of its entries form whole blocks; ``sweep.statistics`` owns the intervals.
A block of a factor is a choice of all other factors under which every level of it was scored: only whole blocks
count, so that a level is never compared on other trials than its neighbour.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_sweep.scoring.intervals import Array
from sweep.report.analysis.comparison import OBJECTIVE, SCALE, Compared
from sweep.report.analysis.load import SHOWN_KEYS, Row, Sweep
from sweep.report.formats.cells import HEADERS, change, interval
from sweep.statistics.effects import Interaction, estimate_effect, estimate_interaction
from sweep.statistics.estimates import Estimate
from sweep.text import escape_controls, format_setting

# A seed folds; what is asked of a row (eval, which rows of the data) is no setting of it; the rest changes no number.
NOT_FACTORS = ("seed", "eval", "tracking", "launch", "runs_dir", "sweep_name")
WHOLE_GROUPS = ("model.name", "data.name", "quant", "quant.bits")  # keys that stand for all of their group
MAX_PAIRS = 10  # of factors whose interaction is looked at


@dataclass(frozen=True)
class Factor:
    """A varied key with the values that ranked entries have: numbers ascending, names by the parameters they train."""

    key: str  # of a row
    path: str  # of the configuration
    name: str
    levels: list[str]
    values: list[object]

    @property
    def is_numeric(self) -> bool:
        return all(map(is_number, self.values))


@dataclass(frozen=True)
class MainEffect:
    """A factor's levels over its whole blocks.

    Attributes:
        blocks: how many choices of the other factors have every level.
        levels: the mean of each level; ``contrasts``: of each level but the first, minus the first's.
        costs: of each level but the first, the ratios to the first's parameters and training time; None if unknown.
    """

    factor: Factor
    blocks: int
    levels: list[Estimate]
    contrasts: list[Estimate]
    costs: list[tuple[float | None, float | None]]


@dataclass(frozen=True)
class Joint:
    """Two factors together: ``cells[i][j]`` is the mean under level i of the first and j of the second."""

    first: Factor
    second: Factor
    found: Interaction

    @property
    def text(self) -> str:
        """The clearest difference of differences, in words."""
        (one, two), (high, other) = (self.first, self.second), self.found.cell
        by = f"{change(OBJECTIVE, self.found.difference.value)} {interval_text(self.found.difference)}"
        return (
            f"going from {one.name} {one.levels[0]} to {one.levels[high]} changes {OBJECTIVE} by {by} more under "
            f"{two.name} {two.levels[other]} than under {two.levels[0]}"
        )


def interval_text(estimate: Estimate) -> str:
    return interval(OBJECTIVE, estimate.low, estimate.high)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def factors(sweep: Sweep, compared: Compared) -> list[Factor]:
    """The varied keys that have more than one value among the ranked entries: numbers ascending, names by the
    parameters they train.
    """
    rows = [compared.standings[place].row for place in compared.ranked]
    found: dict[str, Factor] = {}
    for path in sweep.varied:
        key = SHOWN_KEYS.get(path, path)
        values = {level_of(row.get(key)): row.get(key) for row in rows}
        if path.partition(".")[0] in NOT_FACTORS or path.endswith("_seed") or key in found or len(values) < 2:
            continue
        numeric = all(map(is_number, values.values()))
        order = sorted(values, key=lambda level: (values[level] if numeric else size_of(rows, key, level), level))
        name = HEADERS.get(key) or escape_controls(key.rpartition(".")[2]).replace("_", " ")
        found[key] = Factor(key, path, name, order, [values[level] for level in order])
    return list(found.values())


def level_of(value: object) -> str:
    return "null" if value is None else format_setting(value)


def size_of(rows: list[Row], key: str, level: str) -> float:
    """The mean number of trainable parameters of the rows at a level."""
    return float(np.mean([row.get("trainable_params") or 0 for row in rows if level_of(row.get(key)) == level]))


def main_effects(compared: Compared, found: list[Factor]) -> list[MainEffect]:
    """One for each factor that has a whole block."""
    effects = []
    for factor in found:
        places = blocks(compared, [factor])
        if not places:
            continue
        cells = np.array(places)
        values, seeds = compared.matrix[cells], seeds_of(compared)[cells]
        effect = estimate_effect(values, seeds, compared.noise, SCALE, compared.is_share)
        costs = [costs_of(compared, cells, level) for level in range(1, len(factor.levels))]
        effects.append(MainEffect(factor, len(places), effect.levels, effect.contrasts, costs))
    return effects


def interactions(compared: Compared, found: list[Factor]) -> list[Joint]:
    """One for each pair of factors that has a whole block of both."""
    joint = []
    for one, two in itertools.islice(itertools.combinations(found, 2), MAX_PAIRS):
        places = blocks(compared, [one, two])
        if places:
            shape = (len(places), len(one.levels), len(two.levels))
            cells = np.array(places).reshape(shape)
            values, seeds = compared.matrix[cells], seeds_of(compared)[cells]
            effect = estimate_interaction(values, seeds, compared.noise, SCALE, compared.is_share)
            joint.append(Joint(one, two, effect))
    return joint


def blocks(compared: Compared, inside: list[Factor]) -> list[list[int]]:
    """Of each whole block, the places in ``ranked`` of its entries, level by level (of two factors: row by row).

    All that a configuration holds beside the factors is equal in a block, varied by this command or not: a sweep's name
    can be used again with other settings.
    """
    homes: dict[str, dict[tuple[str, ...], int]] = {}
    for number, place in enumerate(compared.ranked):
        standing = compared.standings[place]
        rest = rest_of(standing.entry.config, [factor.path for factor in inside])
        homes.setdefault(rest, {}).setdefault(levels_of(standing.row, inside), number)
    wanted = list(itertools.product(*(factor.levels for factor in inside)))
    ordered = [home for _, home in sorted(homes.items())]  # not the trials' order: sums would differ in a last bit
    return [[home[levels] for levels in wanted] for home in ordered if all(levels in home for levels in wanted)]


def rest_of(config: dict[str, Any], paths: list[str]) -> str:
    """A configuration without some of its values."""
    rest = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for path in paths:
        group, _, key = path.partition(".")
        if path in WHOLE_GROUPS or not key:
            rest.pop(group, None)
        elif isinstance(rest.get(group), dict):
            rest[group] = without(rest[group], key)
    return json.dumps(rest, sort_keys=True, default=str)


def without(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """``tree`` without the value at a dotted ``path``."""
    key, _, inner = path.partition(".")
    if not inner or not isinstance(tree.get(key), dict):
        return {name: value for name, value in tree.items() if name != key}
    return {**tree, key: without(tree[key], inner)}


def levels_of(row: Row, factors: list[Factor]) -> tuple[str, ...]:
    return tuple(level_of(row.get(factor.key)) for factor in factors)


def seeds_of(compared: Compared) -> Array:
    return np.array([compared.standings[place].seeds for place in compared.ranked])


def costs_of(compared: Compared, cells: NDArray[np.int_], level: int) -> tuple[float | None, float | None]:
    """The ratios of a level's to the first level's trainable parameters and training seconds, sums over the blocks."""
    rows = [[compared.standings[compared.ranked[cell]].row for cell in block] for block in cells]

    def ratio(key: str) -> float | None:
        first, this = ([block[place].get(key) for block in rows] for place in (0, level))
        known = all(isinstance(value, int | float) and value > 0 for value in [*first, *this])
        return sum(this) / sum(first) if known else None

    return ratio("trainable_params"), ratio("train_seconds")
