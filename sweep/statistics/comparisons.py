"""What a sweep's numbers say and what they do not: paired comparisons of configurations over the same prompts.

Pure numpy on a matrix ``scores``, (entries, prompts): an entry's mean over its seeds, for each prompt. Knows nothing
of rows, files or names. Everything is paired, every interval is LEVEL, every draw is seeded, and no number depends on
the order of the entries, to the last bit: what is drawn or summed over entries is taken in the order of their scores.

Two noises: prompts (another 50 prompts would give other means) and seeds (another training of the same configuration
would). The variance of a mean, or of a difference of means, is

    s^2 / n + sigma^2 * x          s^2 over prompts, of the scores or of the paired differences
                                   sigma^2 the variance that seeds add to a mean, pooled over entries (SeedNoise)
                                   x = 1 / seeds of the entry, of both entries for a difference; 0 for a baseline

with Satterthwaite's degrees of freedom. Simultaneous statements bootstrap the largest of the studentised statistics
(Romano and Wolf 2005) and carry its 95 % quantile c over to Student's distribution for small samples: t^-1(Phi(c)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

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
from sweep.statistics.simultaneous import pair_variances, quantile_of_best, quantile_of_largest

Side: TypeAlias = Literal["better", "worse", "undecided"]
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; no interval where nothing is known of its noise (one prompt)."""

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
    """What seeds add to an entry's mean, from the entries that have two seeds or more.

    ``between`` is the variance of the means of an entry's seeds, ``within`` the part of it that comes of the prompts'
    own noise, which the variance over prompts holds already.
    """

    between: float
    between_df: float
    within: float
    within_df: float

    @property
    def variance(self) -> float:
        """sigma^2: never below zero, though the estimate of a small one would be half the time."""
        return max(0.0, self.between - self.within)


@dataclass(frozen=True)
class Best:
    """The best entry and those tied with it.

    ``gaps`` are simultaneous: each entry's mean minus the best of the others' means. An entry that is not tied has a
    gap that lies below zero as a whole.
    """

    best: int
    tied: list[bool]
    gaps: list[Estimate]


@dataclass(frozen=True)
class Effect:
    """Of a factor's levels: their means, and the differences of each but the first to the first, simultaneous."""

    levels: list[Estimate]
    contrasts: list[Estimate]


@dataclass(frozen=True)
class Interaction:
    """Of two factors: the means of their cells, and the clearest difference of differences.

    ``difference`` is (cell [a, b] - cell [0, b]) - (cell [a, 0] - cell [0, 0]) at ``place`` = (a, b): how much more
    level a changes at level b than at the first one. ``visible``: its interval, simultaneous over all places, has no
    zero.
    """

    cells: list[list[Estimate]]
    visible: bool
    difference: Estimate
    place: tuple[int, int]


def seed_noise(runs: Sequence[ArrayLike]) -> SeedNoise | None:
    """The noise of seeds, pooled over entries: each of ``runs`` holds an entry's scores, (seeds, prompts).

    An analysis of variance: within an entry, score = prompt + seed + rest. None where no entry has two seeds.
    """
    between, within, seeds, rest = [], [], 0, 0
    for run in runs:
        scores = np.asarray(run, dtype=np.float64) + 0.0
        count, n = scores.shape
        if count < 2:
            continue
        scores = scores[np.lexsort(scores.T[::-1])]
        means = scores.mean(axis=1)
        residuals = scores - means[:, None] - scores.mean(axis=0) + scores.mean()
        between.append(np.sort((means - means.mean()) ** 2).sum())
        within.append(np.sort(residuals**2, axis=0).sum())
        seeds, rest = seeds + count - 1, rest + (count - 1) * (n - 1)
    if not seeds:
        return None
    per_mean = math.fsum(within) / rest / n if rest else 0.0
    return SeedNoise(math.fsum(between) / seeds, seeds, per_mean, max(rest, 1))


def mean(
    scores: ArrayLike, seeds: float = 1, noise: SeedNoise | None = None, scale: float = 1.0, is_share: bool = False
) -> Estimate:
    """An entry's mean over prompts; ``seeds`` is math.inf for a baseline, which no seed changes.

    Without seed noise its interval is ``mean_interval``'s; with it, see ``widened``.
    """
    values = np.asarray(scores, dtype=np.float64)
    value = exact_mean(values)
    interval = mean_interval(values.tolist(), scale, is_share)
    if interval is None:
        return Estimate(value, None, None)
    low, high = widened(value, *interval, values, 1.0 / seeds, noise)
    return Estimate(value, *clip_to_scale(values, low, high, scale))


def difference(
    a: ArrayLike,
    b: ArrayLike,
    seeds: tuple[float, float] = (1, 1),
    noise: SeedNoise | None = None,
    draws: int = BOOTSTRAP_DRAWS,
) -> Estimate:
    """The mean of ``a`` minus that of ``b`` on the same prompts; for one comparison that was chosen beforehand."""
    values = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    value = exact_mean(values)
    if values.size < 2:
        return Estimate(value, None, None)
    low, high = widened(value, *bootstrap_interval(values, draws), values, 1.0 / seeds[0] + 1.0 / seeds[1], noise)
    if high - low <= 1e-9 * abs(value):
        return Estimate(value, *bounds(value, 0.0, values.size, 1))
    return Estimate(value, low, high)


def wins(a: ArrayLike, b: ArrayLike) -> tuple[int, int, int]:
    """Prompts on which ``a`` scores more than ``b``, the same, and less."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    same = np.isclose(left, right, rtol=1e-9, atol=1e-9)
    return int((~same & (left > right)).sum()), int(same.sum()), int((~same & (left < right)).sum())


def widened(value: float, low: float, high: float, values: Array, share: float, noise: SeedNoise | None) -> Interval:
    """The interval with seed noise: each half grows, in squares, by what Student's interval with both noises is
    longer than Student's interval with the prompts' alone.
    """
    if noise is None or share == 0.0:
        return low, high
    prompts = float(values.var(ddof=1)) / values.size
    variance, df = with_seeds(np.array([prompts]), values.size, np.array([share]), noise)
    p = 0.5 + LEVEL / 2
    more = float((student_quantile(p, df) ** 2 * variance - student_quantile(p, values.size - 1) ** 2 * prompts)[0])
    more = max(0.0, more)
    return value - math.hypot(value - low, more**0.5), value + math.hypot(high - value, more**0.5)


def with_seeds(prompts: Array, n: int, shares: Array, noise: SeedNoise | None) -> tuple[Array, Array]:
    """(variances, degrees of freedom) of means that have the variances ``prompts`` over n prompts and x = ``shares``.

    Satterthwaite's formula for prompts + x * (between - within), with at least one degree of freedom.
    """
    if noise is None:
        return prompts, np.full(prompts.shape, n - 1.0)
    variances = prompts + shares * noise.variance
    spread = prompts**2 / (n - 1) + shares**2 * (
        noise.between**2 / noise.between_df + noise.within**2 / noise.within_df
    )
    df = np.divide(variances**2, spread, out=np.full(prompts.shape, n - 1.0), where=spread > 0)
    return variances, np.clip(df, 1.0, None)


def exact_mean(values: Array) -> float:
    return math.fsum(values.tolist()) / values.size


def tied_with_best(
    scores: ArrayLike, seeds: Sequence[float], noise: SeedNoise | None = None, draws: int = BOOTSTRAP_DRAWS
) -> Best:
    """The group tied with the best: multiple comparisons with the best (Hsu 1981), by bootstrapping the maximum.

    In each draw the entries' centred means have a best of their own, b*; the draw's statistic is the largest of
    (mean of b* - mean of i) / s(b*, i) over the entries i. With c, its 95 % quantile, an entry is tied where the best
    is at most c * s ahead of it. So, where all entries are equal, all are in the group in 95 % of sweeps; that the
    best one was picked after the fact is in c.

    Args:
        scores: (entries, prompts).
        seeds: the number of seeds of each entry; math.inf for a baseline.
    """
    matrix, counts = np.asarray(scores, dtype=np.float64) + 0.0, np.asarray(seeds, dtype=np.float64)
    order = np.lexsort([counts, *matrix.T[::-1]])
    data, shares = matrix[order], 1.0 / counts[order]
    means = np.array([exact_mean(row) for row in data])
    k, n = data.shape
    best = int(np.argmax(means))
    ahead = means[best] - means
    if n < 2 or k < 2:
        gaps = [Estimate(-gap, None, None) for gap in ahead.tolist()]
        return Best(int(order[best]), [True] * k, restored(gaps, order))
    pairs = pair_variances(data)
    c = quantile_of_best(data, pairs, shares * (noise.variance if noise else 0.0), draws)
    margins = critical_margins(c, pairs[best], n, shares + shares[best], noise)
    gaps = [
        gap_to(ahead, margins, best) if i == best else Estimate(-gap, *bounds(-gap, margin, n, k - 1))
        for i, (gap, margin) in enumerate(zip(ahead.tolist(), margins.tolist(), strict=True))
    ]
    tied = [i == best or gap.high is None or gap.high >= 0.0 for i, gap in enumerate(gaps)]
    return Best(int(order[best]), restored(tied, order), restored(gaps, order))


def critical_margins(c: float, prompts: Array, n: int, shares: Array, noise: SeedNoise | None) -> Array:
    """By how much each of the differences with these variances must be off, c being a normal quantile."""
    variances, df = with_seeds(prompts, n, shares, noise)
    return np.asarray(np.sqrt(variances) * student_quantile(min(float(ndtr(c)), 1.0 - 1e-12), df))


def bounds(value: float, margin: float, n: int, comparisons: int) -> tuple[float | None, float | None]:
    """The interval. A difference that is the same on every prompt has no variance: it is known where a sign test
    could tell (2 * 0.5^n of LEVEL's rest, shared by the comparisons), and unknown otherwise.
    """
    if margin == 0.0 and value != 0.0 and comparisons * 2 * 0.5**n > 1.0 - LEVEL:
        return None, None
    return value - margin, value + margin


def gap_to(ahead: Array, margins: Array, best: int) -> Estimate:
    """The best entry's own gap: to the best of the others, whichever of them that is."""
    others = np.arange(ahead.size) != best
    gaps, reach = ahead[others], margins[others]
    return Estimate(float(gaps.min()), float((gaps - reach).min()), float((gaps + reach).min()))


def restored(values: list[T], order: NDArray[np.intp]) -> list[T]:
    """Values in the order of ``order``, back in the caller's."""
    return [value for _, value in sorted(zip(order.tolist(), values, strict=True), key=lambda pair: pair[0])]


def simultaneous(values: Array, loads: Array, noise: SeedNoise | None, draws: int) -> list[Estimate]:
    """The means of ``values``, (comparisons, prompts), with intervals that all hold together in LEVEL of sweeps.

    ``loads``, (comparisons, sources of seed noise): by what each comparison multiplies each source's deviation.
    """
    m, n = values.shape
    means = [exact_mean(row) for row in values]
    if n < 2:
        return [Estimate(value, None, None) for value in means]
    prompts = values.var(axis=1, ddof=1) / n
    prompts[prompts <= (1e-9 * np.abs(values).max()) ** 2] = 0.0
    c = quantile_of_largest(values, loads * math.sqrt(noise.variance if noise else 0.0), draws)
    margins = critical_margins(c, prompts, n, (loads**2).sum(axis=1), noise).tolist()
    return [Estimate(value, *bounds(value, margin, n, m)) for value, margin in zip(means, margins, strict=True)]


def against_control(
    scores: ArrayLike,
    control: ArrayLike,
    seeds: Sequence[float],
    noise: SeedNoise | None = None,
    draws: int = BOOTSTRAP_DRAWS,
) -> list[Estimate]:
    """Each entry's mean minus its baseline's, simultaneous over the entries: see ``Estimate.side``.

    Args:
        scores, control: (entries, prompts): row i of ``control`` is entry i's own baseline.
        seeds: the number of seeds of each entry.
    """
    matrix = np.asarray(scores, dtype=np.float64) - np.asarray(control, dtype=np.float64) + 0.0
    counts = np.asarray(seeds, dtype=np.float64)
    if not len(matrix):
        return []
    order = np.lexsort([counts, *matrix.T[::-1]])
    return restored(simultaneous(matrix[order], np.diag(np.sqrt(1.0 / counts[order])), noise, draws), order)


def verdict(tied: bool, versus_baseline: Estimate | None) -> Literal["high", "low", "no gain"] | None:
    """``no gain``: not distinguishable from the baseline. ``high``: better than it and tied with the best. ``low``:
    behind the best. None where there is no baseline to be better than.
    """
    if versus_baseline is not None and versus_baseline.side == "undecided":
        return "no gain"
    if not tied or (versus_baseline is not None and versus_baseline.side == "worse"):
        return "low"
    return "high" if versus_baseline is not None else None


def main_effect(
    blocks: ArrayLike,
    seeds: ArrayLike,
    noise: SeedNoise | None = None,
    scale: float = 1.0,
    is_share: bool = False,
    draws: int = BOOTSTRAP_DRAWS,
) -> Effect:
    """What a factor's levels change, on average over the contexts (the settings of all other factors).

    Args:
        blocks: (contexts, levels, prompts): every context has every level.
        seeds: (contexts, levels).
    """
    values, shares = over_contexts(blocks, seeds)
    levels = [
        mean(row, 1.0 / share, noise, scale, is_share) for row, share in zip(values, shares.tolist(), strict=True)
    ]
    deviations = np.diag(np.sqrt(shares))
    contrasts = simultaneous(values[1:] - values[0], deviations[1:] - deviations[0], noise, draws)
    return Effect(levels, contrasts)


def interaction(
    cells: ArrayLike,
    seeds: ArrayLike,
    noise: SeedNoise | None = None,
    scale: float = 1.0,
    is_share: bool = False,
    draws: int = BOOTSTRAP_DRAWS,
) -> Interaction:
    """Whether what one factor changes depends on another, on average over the contexts.

    Args:
        cells: (contexts, levels of a, levels of b, prompts), two levels or more each.
        seeds: (contexts, levels of a, levels of b).
    """
    values, shares = over_contexts(cells, seeds)
    means = [
        [mean(row, 1.0 / share, noise, scale, is_share) for row, share in zip(rows, some, strict=True)]
        for rows, some in zip(values, shares.tolist(), strict=True)
    ]
    a, b, n = values.shape
    deviations = np.diag(np.sqrt(shares.ravel())).reshape(a, b, a * b)
    doubled, loads = corners(values), corners(deviations)
    estimates = simultaneous(doubled.reshape(-1, n), loads.reshape(-1, a * b), noise, draws)
    clearest = max(range(len(estimates)), key=lambda i: clearness(estimates[i]))
    place = (clearest // (b - 1) + 1, clearest % (b - 1) + 1)
    return Interaction(means, estimates[clearest].side != "undecided", estimates[clearest], place)


def over_contexts(blocks: ArrayLike, seeds: ArrayLike) -> tuple[Array, Array]:
    """(means over the first axis, their shares of seed noise), the same for any order of the contexts."""
    values, counts = np.asarray(blocks, dtype=np.float64), np.asarray(seeds, dtype=np.float64)
    shares = np.sort(1.0 / counts, axis=0).sum(axis=0) / len(counts) ** 2
    return np.sort(values, axis=0).sum(axis=0) / len(values), shares


def corners(values: Array) -> Array:
    """(a - 1, b - 1, ...) differences of differences to the first levels."""
    changes = values[1:] - values[:1]
    return changes[:, 1:] - changes[:, :1]


def clearness(estimate: Estimate) -> float:
    """How many of its margins an estimate is away from zero."""
    if estimate.low is None or estimate.high is None:
        return 0.0
    margin = (estimate.high - estimate.low) / 2
    if margin == 0.0:
        return math.inf if estimate.value else 0.0
    return abs(estimate.value) / margin
