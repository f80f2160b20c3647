"""Simultaneous comparisons, with intervals that hold all together: with the best, with baselines, and of effects.

A threshold c is the 95 % quantile of the largest studentised statistic (:mod:`sweep.statistics.bootstrap`). For small
samples it is converted to Student's distribution: t^-1(Phi(c)). Everything is paired: a column is the same prompt in
every row.
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
        tied: for each configuration, whether it is in the group.
        gaps: for each configuration, its mean minus the highest mean of the others. The intervals hold all together. If
            a configuration is not tied, its whole interval lies below zero.
    """

    best: int
    tied: list[bool]
    gaps: list[Estimate]


def find_tied_group(
    scores: ArrayLike, seeds: Sequence[float], noise: SeedNoise | None = None, draws: int = BOOTSTRAP_DRAWS
) -> TiedGroup:
    """The group tied with the best: multiple comparisons with the best (Hsu 1981), by bootstrapping the maximum.

    In each draw of the centred means one configuration, b*, is the best; the statistic of the draw is the largest of
    (mean of b* - mean of i) / s(b*, i) over all i. Let c be its 95 % quantile: configuration i is tied if the best
    is at most c * s ahead of it. So if all configurations are equal, all of them are in the group in 95 % of sweeps.
    The best is picked after its score was seen; c allows for that.

    Args:
        scores: [configurations, prompts]
        seeds: how many trainings each row is averaged over; math.inf for a baseline.
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
        seeds: how many trainings each row of ``scores`` is averaged over.
    """
    matrix = np.asarray(scores, dtype=np.float64) - np.asarray(baselines, dtype=np.float64) + 0.0
    counts = np.asarray(seeds, dtype=np.float64)
    if not len(matrix):
        return []
    order = np.lexsort([counts, *matrix.T[::-1]])
    loads = np.diag(np.sqrt(1.0 / counts[order]))
    return restore_order(estimate_together(matrix[order], loads, noise, draws), order)


def decide_verdict(is_tied: bool, versus_baseline: Estimate | None) -> Verdict | None:
    """The verdict on a configuration.

    ``no gain``: it is not shown to differ from its baseline. ``high``: it is better than its baseline and tied with the
    best. ``low``: it is behind the best, or worse than its baseline. None: it is tied and has no baseline.
    """
    if versus_baseline is not None and versus_baseline.side == "undecided":
        return "no gain"
    if not is_tied or (versus_baseline is not None and versus_baseline.side == "worse"):
        return "low"
    return "high" if versus_baseline is not None else None


def estimate_together(values: Array, loads: Array, noise: SeedNoise | None, draws: int) -> list[Estimate]:
    """The mean of each row of ``values``, with intervals that hold all together in a share LEVEL of sweeps.

    Args:
        values: [comparisons, prompts], differences of scores.
        loads: [comparisons, sources of seed noise], the factors of the sources' deviations in each comparison.
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
    """Half the width of each interval, [comparisons].

    Args:
        c: the threshold, as a quantile of the normal distribution.
        prompts, n, shares, noise: as in :func:`add_seed_variance`.
    """
    variances, df = add_seed_variance(prompts, n, shares, noise)
    p = min(float(ndtr(c)), 1.0 - 1e-12)
    return np.asarray(np.sqrt(variances) * student_quantile(p, df))


def measure_lead(ahead: Array, margins: Array, best: int) -> Estimate:
    """By how much the best configuration is ahead of the best of the others.

    Any of the others can be the best of them in truth, so each end of the interval is the lowest over the others.

    Args:
        ahead: [configurations], by how much the best is ahead of each.
        margins: [configurations], the margins of these differences.
    """
    others = np.arange(ahead.size) != best
    gaps, reach = ahead[others], margins[others]
    return Estimate(float(gaps.min()), float((gaps - reach).min()), float((gaps + reach).min()))


def restore_order(values: list[T], order: NDArray[np.intp]) -> list[T]:
    """Put ``values`` back into the caller's order; ``order`` holds the caller's index of each value."""
    return [value for _, value in sorted(zip(order.tolist(), values, strict=True), key=lambda pair: pair[0])]
