"""What each varied key changes on average over the others, and which pairs of keys interact.

This module decides which keys are factors of a sweep, and which configurations form whole blocks; ``sweep.statistics``
computes the intervals. A block of a factor is one choice of all other factors under which every level of it was scored.
Only whole blocks count, so that no level is compared on other trials than its neighbour.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_sweep.scoring.intervals import Array
from sweep.report.analysis.comparison import SCALE, Comparison
from sweep.report.analysis.configurations import FIELDS_BY_KEY, OBJECTIVE, TrialSummary
from sweep.report.analysis.load import Sweep
from sweep.report.formats.cells import format_change, format_interval
from sweep.report.formats.columns import find_column
from sweep.statistics.effects import Interaction, estimate_effect, estimate_interaction
from sweep.statistics.estimates import Estimate
from sweep.text import format_setting

# Seeds are averaged within a configuration, eval changes what the adapters are asked, and the other groups change no
# number. (For the same reasons a key that ends in _seed, such as data.split_seed, is no factor.)
NOT_FACTORS = ("seed", "eval", "tracking", "launch", "runs_dir", "sweep_name")
WHOLE_GROUPS = ("model.name", "data.name", "quant", "quant.bits")  # keys that stand for all of their group
MAX_INTERACTIONS = 10  # pairs of factors that are looked at


@dataclass(frozen=True)
class Factor:
    """A varied key with the values that ranked configurations have.

    Attributes:
        key: the key of the column in a report.
        path: the dotted key in the config.
        levels, values: the values as text and unchanged. Numbers ascend; names are sorted by the number of parameters
            that they train.
    """

    key: str
    path: str
    name: str
    levels: list[str]
    values: list[object]

    @property
    def is_numeric(self) -> bool:
        return all(is_number(value) for value in self.values)


@dataclass(frozen=True)
class MainEffect:
    """What a factor changes, measured on its whole blocks.

    Attributes:
        blocks: how many whole blocks there are.
        levels: the mean of each level.
        contrasts: for each level but the first, its mean minus the mean of the first level.
        costs: for each level but the first, two ratios to the first level: trainable parameters and training time; None
            if a ratio is unknown.
    """

    factor: Factor
    blocks: int
    levels: list[Estimate]
    contrasts: list[Estimate]
    costs: list[tuple[float | None, float | None]]


@dataclass(frozen=True)
class FactorPair:
    """Two factors and their interaction."""

    first: Factor
    second: Factor
    interaction: Interaction

    @property
    def text(self) -> str:
        """The clearest difference of differences, in words."""
        first, second, (high, other) = self.first, self.second, self.interaction.cell
        difference = self.interaction.difference
        change = f"{format_change(OBJECTIVE, difference.value)} {format_estimate_interval(difference)}"
        return (
            f"{first.name} {first.levels[high]} instead of {first.levels[0]} changes {OBJECTIVE} by {change} more with "
            f"{second.name} {second.levels[other]} than with {second.levels[0]}"
        )


def format_estimate_interval(estimate: Estimate) -> str:
    return format_interval(OBJECTIVE, estimate.low, estimate.high)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def find_factors(sweep: Sweep, comparison: Comparison) -> list[Factor]:
    """The varied keys with more than one value among the ranked configurations."""
    summaries = [standing.summary for standing in comparison.ranked_standings]
    factors: dict[str, Factor] = {}
    for path in sweep.varied:
        key = FIELDS_BY_KEY.get(path, path)
        values = {format_level(summary.value(key)): summary.value(key) for summary in summaries}
        if path.partition(".")[0] in NOT_FACTORS or path.endswith("_seed") or key in factors or len(values) < 2:
            continue
        numbers = {level: value for level, value in values.items() if isinstance(value, int | float)}
        is_numeric = all(is_number(value) for value in values.values())
        sizes = numbers if is_numeric else {level: average_size(summaries, key, level) for level in values}
        levels = sorted(values, key=lambda level: (sizes[level], level))
        factors[key] = Factor(key, path, find_column(key).header, levels, [values[level] for level in levels])
    return list(factors.values())


def format_level(value: object) -> str:
    return "null" if value is None else format_setting(value)


def average_size(summaries: list[TrialSummary], key: str, level: str) -> float:
    """The mean number of trainable parameters of the configurations with this level."""
    sizes = [summary.trainable_params or 0 for summary in summaries if format_level(summary.value(key)) == level]
    return float(np.mean(sizes))


def measure_effects(comparison: Comparison, factors: list[Factor]) -> list[MainEffect]:
    """The main effect of each factor that has a whole block."""
    effects = []
    for factor in factors:
        blocks = find_blocks(comparison, [factor])
        if not blocks:
            continue
        cells = np.array(blocks)  # [blocks, levels], indices in ``ranked``
        values, seeds = comparison.matrix[cells], count_seeds(comparison)[cells]
        effect = estimate_effect(values, seeds, comparison.noise, SCALE, comparison.is_share)
        costs = [compare_costs(comparison, cells, level) for level in range(1, len(factor.levels))]
        effects.append(MainEffect(factor, len(blocks), effect.levels, effect.contrasts, costs))
    return effects


def measure_interactions(comparison: Comparison, factors: list[Factor]) -> list[FactorPair]:
    """The interaction of each pair of factors that has a whole block of both."""
    pairs = []
    for first, second in itertools.islice(itertools.combinations(factors, 2), MAX_INTERACTIONS):
        blocks = find_blocks(comparison, [first, second])
        if blocks:
            shape = (len(blocks), len(first.levels), len(second.levels))
            cells = np.array(blocks).reshape(shape)
            values, seeds = comparison.matrix[cells], count_seeds(comparison)[cells]
            interaction = estimate_interaction(values, seeds, comparison.noise, SCALE, comparison.is_share)
            pairs.append(FactorPair(first, second, interaction))
    return pairs


def find_blocks(comparison: Comparison, factors: list[Factor]) -> list[list[int]]:
    """For each whole block, the indices of its configurations in ``comparison.ranked``.

    The order in a block is that of the factor's levels; with two factors, the levels of the second change fastest. In a
    block, everything in the config besides the factors is equal, also keys that this command did not vary, because the
    name of a sweep can be used again with other settings.
    """
    groups: dict[str, dict[tuple[str, ...], int]] = {}
    for index, standing in enumerate(comparison.ranked_standings):
        rest = remove_keys(standing.configuration.config, [factor.path for factor in factors])
        levels = tuple(format_level(standing.summary.value(factor.key)) for factor in factors)
        groups.setdefault(rest, {}).setdefault(levels, index)
    wanted = list(itertools.product(*(factor.levels for factor in factors)))
    ordered = [group for _, group in sorted(groups.items())]  # sums must not depend on the order of the trials
    return [[group[levels] for levels in wanted] for group in ordered if all(levels in group for levels in wanted)]


def remove_keys(config: dict[str, object], paths: Sequence[str]) -> str:
    """``config`` without the keys at ``paths``, as JSON."""
    rest = dict(config)
    for path in paths:
        group, _, key = path.partition(".")
        branch = rest.get(group)
        if path in WHOLE_GROUPS or not key:
            rest.pop(group, None)
        elif isinstance(branch, dict):
            rest[group] = remove_key(branch, key)
    return json.dumps(rest, sort_keys=True, default=str)


def remove_key(tree: dict[str, object], path: str) -> dict[str, object]:
    """``tree`` without the value at a dotted ``path``."""
    key, _, inner = path.partition(".")
    branch = tree.get(key)
    if not inner or not isinstance(branch, dict):
        return {name: value for name, value in tree.items() if name != key}
    return {**tree, key: remove_key(branch, inner)}


def count_seeds(comparison: Comparison) -> Array:
    """How many seeds each ranked configuration has, [ranked]."""
    return np.array([standing.seeds for standing in comparison.ranked_standings])


def compare_costs(comparison: Comparison, cells: NDArray[np.int_], level: int) -> tuple[float | None, float | None]:
    """The trainable parameters and the training time of a level, each divided by that of the first level.

    Both are summed over the blocks first.

    Args:
        cells: [blocks, levels], indices in ``comparison.ranked``.
    """
    summaries = [standing.summary for standing in comparison.ranked_standings]
    firsts, others = ([summaries[cell] for cell in cells[:, column]] for column in (0, level))
    return (
        divide_sums([item.trainable_params for item in others], [item.trainable_params for item in firsts]),
        divide_sums([item.train_seconds for item in others], [item.train_seconds for item in firsts]),
    )


def divide_sums(others: Sequence[float | None], firsts: Sequence[float | None]) -> float | None:
    """The sum of ``others`` divided by the sum of ``firsts``; None if a number is unknown or not positive."""
    numbers = [value for value in [*others, *firsts] if value is not None and value > 0]
    if len(numbers) < len(others) + len(firsts):
        return None
    return sum(numbers[: len(others)]) / sum(numbers[len(others) :])
