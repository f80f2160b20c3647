"""Means and differences of means over prompts, each with its 95 % interval; and the noise that seeds add to them.

Two things make a mean uncertain: the choice of prompts (another 50 prompts would give another mean) and the seed
(another training of the same configuration would give another mean). The variance of a mean, or of a difference of
means, is

    s^2 / n + sigma^2 * x          s^2      variance over the n prompts, of the scores or of the paired differences
                                   sigma^2  variance that seeds add to a mean, pooled over configurations (SeedNoise)
                                   x        1 / seeds of the configuration, summed over both for a difference;
                                            0 for a baseline, which no seed changes

with Satterthwaite's degrees of freedom. All functions are pure functions of arrays. All intervals have the confidence
LEVEL, and all draws have a fixed seed. No number depends on the order of the configurations, not even in its last bit,
because draws and sums over configurations are made in the order of their scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lora_sweep.scoring.intervals import (
    BOOTSTRAP_DRAWS,
    LEVEL,
    Array,
    Interval,
    bootstrap_interval,
    clip_to_scale,
    mean_interval,
    student_quantile,
)

Side: TypeAlias = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; the ends are None if too few prompts show how large the noise is."""

    value: float
    low: float | None
    high: float | None

    @property
    def side(self) -> Side:
        """On which side of zero the whole interval lies."""
        if self.low is None or self.high is None or self.low <= 0.0 <= self.high:
            return "undecided"
        return "better" if self.low > 0.0 else "worse"


@dataclass(frozen=True)
class SeedNoise:
    """The noise that seeds add to the mean of a configuration, measured on configurations with two or more seeds.

    Attributes:
        between: variance of the means of the seeds of one configuration.
        within: the part of ``between`` that comes from the prompts; the variance over prompts contains it already.
        between_df, within_df: degrees of freedom of the two.
    """

    between: float
    between_df: float
    within: float
    within_df: float

    @property
    def variance(self) -> float:
        """sigma^2, at least zero: the estimate of a very small variance is negative half of the time."""
        return max(0.0, self.between - self.within)


def estimate_seed_noise(runs: Sequence[ArrayLike]) -> SeedNoise | None:
    """Pool the noise of seeds over configurations, by an analysis of variance: score = prompt + seed + rest.

    Args:
        runs: for each configuration its scores, [seeds, prompts]; all have the same prompts.

    Returns:
        None if no configuration has two seeds.
    """
    between, within, seeds_df, rest_df = [], [], 0, 0
    for run in runs:
        scores = np.asarray(run, dtype=np.float64) + 0.0  # [seeds, prompts]; + 0.0 turns -0.0 into 0.0
        seeds, n = scores.shape
        if seeds < 2:
            continue
        scores = scores[np.lexsort(scores.T[::-1])]
        means = scores.mean(axis=1)
        residuals = scores - means[:, None] - scores.mean(axis=0) + scores.mean()
        between.append(np.sort((means - means.mean()) ** 2).sum())
        within.append(np.sort(residuals**2, axis=0).sum())
        seeds_df, rest_df = seeds_df + seeds - 1, rest_df + (seeds - 1) * (n - 1)
    if not seeds_df:
        return None
    per_mean = math.fsum(within) / rest_df / n if rest_df else 0.0
    return SeedNoise(math.fsum(between) / seeds_df, seeds_df, per_mean, max(rest_df, 1))


def estimate_mean(
    scores: ArrayLike, seeds: float = 1, noise: SeedNoise | None = None, scale: float = 1.0, is_share: bool = False
) -> Estimate:
    """The mean of one configuration over prompts.

    Args:
        scores: [prompts]
        seeds: how many trainings the scores are averaged over; math.inf for a baseline.
        noise: if given, the interval is widened by it, see :func:`widen_interval`.
        scale, is_share: see :func:`lora_sweep.scoring.intervals.mean_interval`.
    """
    values = np.asarray(scores, dtype=np.float64)
    value = compute_mean(values)
    interval = mean_interval(values.tolist(), scale, is_share)
    if interval is None:
        return Estimate(value, None, None)
    low, high = widen_interval(value, *interval, values, 1.0 / seeds, noise)
    return Estimate(value, *clip_to_scale(values, low, high, scale))


def estimate_difference(
    a: ArrayLike,
    b: ArrayLike,
    seeds: tuple[float, float] = (1, 1),
    noise: SeedNoise | None = None,
    draws: int = BOOTSTRAP_DRAWS,
) -> Estimate:
    """The mean of ``a`` minus the mean of ``b``, both [prompts] on the same prompts.

    The interval is for a single comparison that was chosen before the scores were seen.

    Args:
        seeds: how many trainings ``a`` and ``b`` are averaged over; math.inf for a baseline.
    """
    values = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    value = compute_mean(values)
    if values.size < 2:
        return Estimate(value, None, None)
    low, high = widen_interval(
        value, *bootstrap_interval(values, draws), values, 1.0 / seeds[0] + 1.0 / seeds[1], noise
    )
    if high - low <= 1e-9 * abs(value):
        return Estimate(value, *bound_difference(value, 0.0, values.size, 1))
    return Estimate(value, low, high)


def count_wins(a: ArrayLike, b: ArrayLike) -> tuple[int, int, int]:
    """On how many prompts ``a`` scores more than ``b``, the same, and less; both [prompts]."""
    ours, theirs = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    same = np.isclose(ours, theirs, rtol=1e-9, atol=1e-9)
    return int((~same & (ours > theirs)).sum()), int(same.sum()), int((~same & (ours < theirs)).sum())


def widen_interval(
    value: float, low: float, high: float, values: Array, share: float, noise: SeedNoise | None
) -> Interval:
    """Add the noise of seeds to the interval of a mean.

    Student's margin with both kinds of noise is larger than Student's margin with the noise of the prompts alone. The
    square of each side of the given interval grows by the difference of the squares of these two margins.

    Args:
        value, low, high: the mean and the ends of its interval.
        values: [prompts], the scores with this mean.
        share: x in the formula of this module.
    """
    if noise is None or share == 0.0:
        return low, high
    prompts = float(values.var(ddof=1)) / values.size
    variance, df = add_seed_variance(np.array([prompts]), values.size, np.array([share]), noise)
    p = 0.5 + LEVEL / 2
    both = student_quantile(p, df) ** 2 * variance  # [1]
    more = max(0.0, float(both[0] - student_quantile(p, values.size - 1) ** 2 * prompts))
    return value - math.hypot(value - low, more**0.5), value + math.hypot(high - value, more**0.5)


def add_seed_variance(prompts: Array, n: int, shares: Array, noise: SeedNoise | None) -> tuple[Array, Array]:
    """The variances of means with the noise of prompts and of seeds, and their degrees of freedom.

    The degrees of freedom are Satterthwaite's for prompts + x * (between - within), and at least one.

    Args:
        prompts: [means], s^2 / n in the formula of this module.
        n: the number of prompts.
        shares: [means], x in the formula.
    """
    if noise is None:
        return prompts, np.full(prompts.shape, n - 1.0)
    variances = prompts + shares * noise.variance
    spread = prompts**2 / (n - 1) + shares**2 * (
        noise.between**2 / noise.between_df + noise.within**2 / noise.within_df
    )
    df = np.divide(variances**2, spread, out=np.full(prompts.shape, n - 1.0), where=spread > 0)
    return variances, np.clip(df, 1.0, None)


def bound_difference(value: float, margin: float, n: int, comparisons: int) -> tuple[float | None, float | None]:
    """The interval of a difference: ``value`` plus and minus ``margin``.

    A difference that is the same on every prompt has no variance, so its margin is zero. It counts as certain if there
    are as many prompts as a sign test needs: 2 * 0.5^n is at most 1 - LEVEL divided by the number of comparisons. With
    fewer prompts the interval is unknown.
    """
    if margin == 0.0 and value != 0.0 and comparisons * 2 * 0.5**n > 1.0 - LEVEL:
        return None, None
    return value - margin, value + margin


def compute_mean(values: Array) -> float:
    """The mean without rounding errors, the same for any order of the values."""
    return math.fsum(values.tolist()) / values.size
