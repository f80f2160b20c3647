"""Comparisons whose intervals hold all together: with the best, with baselines, and of the differences in between.

A threshold is the 95 % quantile of the largest studentised statistic (:mod:`sweep.statistics.bootstrap`). For small
samples it is carried over to Student's distribution: t^-1(Phi(c)). Everything is paired: the same column is the same
prompt in every row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from lora_sweep.scoring.intervals import BOOTSTRAP_DRAWS, Array, student_quantile
from sweep.statistics.bootstrap import bootstrap_best, bootstrap_largest, compute_pair_variances
from sweep.statistics.estimates import Estimate, SeedNoise, add_seed_variance, bound_difference, compute_mean

Verdict: TypeAlias = Literal["high", "low", "no gain"]
T = TypeVar("T")


@dataclass(frozen=True)
class TiedGroup:
    """The best configuration and those that are not shown to be behind it.

    Attributes:
        best: index of the highest mean.
        tied: of each configuration, whether it is in the group.
        gaps: the mean of each configuration minus the best of the others' means. The intervals hold all together. A
            configuration that is not tied has an interval that lies below zero as a whole.
    """

    best: int
    tied: list[bool]
    gaps: list[Estimate]


def find_tied_group(
    scores: ArrayLike, seeds: Sequence[float], noise: SeedNoise | None = None, draws: int = BOOTSTRAP_DRAWS
) -> TiedGroup:
    """The group tied with the best: multiple comparisons with the best (Hsu 1981), by bootstrapping the maximum.

    In each draw of the centred means one configuration, b*, is the best; the statistic of the draw is the largest of
    (mean of b* - mean of i) / s(b*, i) over all i. With c, its 95 % quantile, configuration i is tied where the best is
    at most c * s ahead of it. So where all configurations are equal, all of them are in the group in 95 % of sweeps; c
    allows for the best having been picked after its score was seen.

    Args:
        scores: [configurations, prompts]
        seeds: how many trainings each row is the mean of; math.inf for a baseline.
    """
    matrix, counts = np.asarray(scores, dtype=np.float64) + 0.0, np.asarray(seeds, dtype=np.float64)
    order = np.lexsort([counts, *matrix.T[::-1]])
    data, shares = matrix[order], 1.0 / counts[order]
    means = np.array([compute_mean(row) for row in data])
    k, n = data.shape
    best = int(np.argmax(means))
    ahead = means[best] - means  # [configurations], by how much the best is ahead
    if n < 2 or k < 2:
        gaps = [Estimate(-gap, None, None) for gap in ahead.tolist()]
        return TiedGroup(int(order[best]), [True] * k, restore_order(gaps, order))
    pairs = compute_pair_variances(data)
    c = bootstrap_best(data, pairs, shares * (noise.variance if noise else 0.0), draws)
    margins = compute_margins(c, pairs[best], n, shares + shares[best], noise)
    gaps = [
        measure_lead(ahead, margins, best) if i == best else Estimate(-gap, *bound_difference(-gap, margin, n, k - 1))
        for i, (gap, margin) in enumerate(zip(ahead.tolist(), margins.tolist(), strict=True))
    ]
    tied = [i == best or gap.high is None or gap.high >= 0.0 for i, gap in enumerate(gaps)]
    return TiedGroup(int(order[best]), restore_order(tied, order), restore_order(gaps, order))


def compare_with_baselines(
    scores: ArrayLike,
    baselines: ArrayLike,
    seeds: Sequence[float],
    noise: SeedNoise | None = None,
    draws: int = BOOTSTRAP_DRAWS,
) -> list[Estimate]:
    """The mean of each configuration minus the mean of its baseline; the intervals hold all together.

    Args:
        scores: [configurations, prompts]
        baselines: [configurations, prompts]; row i is the baseline of configuration i.
        seeds: how many trainings each row of ``scores`` is the mean of.
    """
    matrix = np.asarray(scores, dtype=np.float64) - np.asarray(baselines, dtype=np.float64) + 0.0
    counts = np.asarray(seeds, dtype=np.float64)
    if not len(matrix):
        return []
    order = np.lexsort([counts, *matrix.T[::-1]])
    loads = np.diag(np.sqrt(1.0 / counts[order]))
    return restore_order(estimate_together(matrix[order], loads, noise, draws), order)


def decide_verdict(is_tied: bool, versus_baseline: Estimate | None) -> Verdict | None:
    """``no gain``: not shown to differ from the baseline. ``high``: better than the baseline and tied with the best.
    ``low``: behind the best, or worse than the baseline. None for a tied configuration without a baseline.
    """
    if versus_baseline is not None and versus_baseline.side == "undecided":
        return "no gain"
    if not is_tied or (versus_baseline is not None and versus_baseline.side == "worse"):
        return "low"
    return "high" if versus_baseline is not None else None


def estimate_together(values: Array, loads: Array, noise: SeedNoise | None, draws: int) -> list[Estimate]:
    """The mean of each row of ``values``, with intervals that all hold together in LEVEL of sweeps.

    Args:
        values: [comparisons, prompts]
        loads: [comparisons, sources of seed noise], how much of the deviation of each source a comparison has.
    """
    m, n = values.shape
    means = [compute_mean(row) for row in values]
    if n < 2:
        return [Estimate(value, None, None) for value in means]
    prompts = values.var(axis=1, ddof=1) / n
    prompts[prompts <= (1e-9 * np.abs(values).max()) ** 2] = 0.0
    c = bootstrap_largest(values, loads * math.sqrt(noise.variance if noise else 0.0), draws)
    margins = compute_margins(c, prompts, n, (loads**2).sum(axis=1), noise).tolist()
    return [
        Estimate(value, *bound_difference(value, margin, n, m)) for value, margin in zip(means, margins, strict=True)
    ]


def compute_margins(c: float, prompts: Array, n: int, shares: Array, noise: SeedNoise | None) -> Array:
    """Half the length of each interval, [comparisons].

    Args:
        c: the threshold, as a quantile of the normal distribution.
        prompts, n, shares, noise: as in :func:`add_seed_variance`.
    """
    variances, df = add_seed_variance(prompts, n, shares, noise)
    p = min(float(ndtr(c)), 1.0 - 1e-12)
    return np.asarray(np.sqrt(variances) * student_quantile(p, df))


def measure_lead(ahead: Array, margins: Array, best: int) -> Estimate:
    """The gap of the best configuration to the best of the others, for any of them that may be it.

    Args:
        ahead: [configurations], by how much the best is ahead of each.
        margins: [configurations], of these differences.
    """
    others = np.arange(ahead.size) != best
    gaps, reach = ahead[others], margins[others]
    return Estimate(float(gaps.min()), float((gaps - reach).min()), float((gaps + reach).min()))


def restore_order(values: list[T], order: NDArray[np.intp]) -> list[T]:
    """Values that were taken in the order of the indices ``order``, back in the order of the caller."""
    return [value for _, value in sorted(zip(order.tolist(), values, strict=True), key=lambda pair: pair[0])]
