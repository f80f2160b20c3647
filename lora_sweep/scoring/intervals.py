"""How far a mean over prompts is known: 95 % intervals.

Pure numpy; knows nothing of rows, files or sweeps, so that an evaluation's mirror, a report and a sweep's statistics
say the same numbers. The same values give the same interval, whatever their order: every draw has a fixed seed.

The interval of a mean is the bootstrap's percentile interval over prompts, expanded for small samples (Hesterberg
2014, "What Teachers Should Know about the Bootstrap", arXiv 1411.5279, section 4.3): instead of 2.5 % on each side,

    tail = Phi(-sqrt(n / (n - 1)) * t(0.975, n - 1))

since the bootstrap sees the variance with n, not n - 1, below the line, and a normal quantile in place of Student's.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95
DRAWS = 10_000
SEED = 20_260_117  # of every bootstrap: any fixed number
FEW = 20  # below it a resampled mean cannot leave the data far enough: see expanded
NORMAL = NormalDist()


def mean_interval(values: Sequence[float], scale: float = 1.0, is_share: bool = False) -> Interval | None:
    """The interval of the mean of ``values``, one a prompt; None for fewer than two, of which nothing is known.

    Values that are all 0 or ``scale`` are failures and successes: their mean has Wilson's interval, which does not
    shrink to a point where all agree. Zeros alone say so only where ``is_share``: what a text's quality is, 0 as any
    other number. Values in 0 to ``scale`` have an interval that stays there.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    if data.size < 2:
        return None
    if np.isin(data, (0.0, scale)).all() and (is_share or data[-1] == scale):
        low, high = wilson(float((data == scale).sum()), data.size)
        return low * scale, high * scale
    return inside(data, *expanded(data), scale)


def inside(values: Array, low: float, high: float, scale: float) -> Interval:
    """An interval of the mean of ``values``, cut to 0 to ``scale`` where they are all in there."""
    if values.min() >= 0.0 and values.max() <= scale:
        return max(low, 0.0), min(high, scale)
    return low, high


def expanded(values: ArrayLike, draws: int = DRAWS) -> Interval:
    """The expanded percentile interval of the mean of two values or more, in any order.

    Fewer than FEW values: Student's interval where it reaches further. The mean of a resample lies between the
    smallest and the largest value, which hold the truth between them only in 1 - 2^(1 - n) of samples.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    n = data.size
    if data[0] == data[-1]:
        return float(data[0]), float(data[0])
    quantile, tail = expansion(n)
    low, high = outer(resample(n, draws) @ data, tail)
    if n < FEW:
        half = quantile * float(data.std(ddof=1)) / math.sqrt(n)
        low, high = min(low, float(data.mean()) - half), max(high, float(data.mean()) + half)
    return low, high


@lru_cache(maxsize=64)
def expansion(n: int) -> tuple[float, float]:
    """(Student's quantile, the share to leave out on each side) for ``n`` values: the same for every row of a sweep."""
    quantile = float(student_quantile(0.5 + LEVEL / 2, n - 1))
    return quantile, NORMAL.cdf(-math.sqrt(n / (n - 1)) * quantile)


def outer(values: Array, tail: float) -> Interval:
    """The quantiles at ``tail`` and 1 - ``tail``: those of numpy.quantile, without the 0.5 ms that it takes to find
    two places in 10,000 values.
    """
    place = int(tail * (values.size - 1))
    part = tail * (values.size - 1) - place
    ordered = np.partition(values, (place, place + 1, values.size - 2 - place, values.size - 1 - place))
    low = ordered[place] + part * (ordered[place + 1] - ordered[place])
    high = ordered[-1 - place] - part * (ordered[-1 - place] - ordered[-2 - place])
    return float(low), float(high)


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share, 0-1 (Wilson 1927; Brown, Cai and DasGupta 2001 recommend it).

    ``successes`` need not be whole: a tie can count half.
    """
    z = NORMAL.inv_cdf(0.5 + LEVEL / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # 0 of n: from 0, not 1e-17


@lru_cache(maxsize=4)
def resample(n: int, draws: int = DRAWS) -> Array:
    """The share of each of ``n`` prompts in each bootstrap draw, (draws, n): a row sums to 1. Read-only."""
    counts = np.random.default_rng(SEED).multinomial(n, np.full(n, 1.0 / n), size=draws)
    shares: Array = counts / n
    shares.setflags(write=False)
    return shares


def student_quantile(p: float, df: ArrayLike) -> Array:
    """The quantile of Student's distribution at ``p``, 0.5 to 1, for each of ``df`` (1 or more, whole or not).

    Newton's method on the logarithms of the quantile and of its tail, which is a straight line far out; from the
    normal quantile, below the answer. Eight digits, tested against a table.
    """
    freedom = np.atleast_1d(np.asarray(df, dtype=np.float64))
    start = NORMAL.inv_cdf(p)
    if p <= 0.5:
        return np.zeros(np.shape(df))
    known, place = np.unique(np.minimum(freedom, 1e5), return_inverse=True)
    log_beta = np.array([math.lgamma(v / 2) + math.lgamma(0.5) - math.lgamma((v + 1) / 2) for v in known])
    t = np.full(known.shape, start)
    for _ in range(30):
        tail = _tail(t, known, log_beta)
        density = np.exp(-(known + 1) / 2 * np.log1p(t * t / known) - 0.5 * np.log(known) - log_beta)
        step = np.log(tail / (1.0 - p)) * tail / (t * density)
        t = t * np.exp(np.clip(step, -1.0, 2.0))
        if np.abs(step).max() < 1e-7:  # its square is what is left
            break
    return np.asarray(t[place].reshape(np.shape(df)))


def _tail(t: Array, df: Array, log_beta: Array) -> Array:
    """P(T > t) for t > 0: half the regularised incomplete beta function at df / (df + t^2), by its continued
    fraction (Press et al., Numerical Recipes, 6.4), on the side where that converges.
    """
    x = df / (df + t * t)
    near = x >= (df / 2 + 1) / (df / 2 + 2.5)
    a, b, z = np.where(near, 0.5, df / 2), np.where(near, df / 2, 0.5), np.where(near, 1 - x, x)
    front = np.exp(a * np.log(z) + b * np.log1p(-z) - log_beta) / a
    c, d = np.ones_like(z), 1.0 / (1.0 - (a + b) * z / (a + 1))
    fraction = d
    for m in range(1, 200):
        even = m * (b - m) * z / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1.0 / (1.0 + even * d), 1.0 + even / c
        fraction = fraction * d * c
        odd = -(a + m) * (a + b + m) * z / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1.0 / (1.0 + odd * d), 1.0 + odd / c
        fraction = fraction * d * c
        if np.abs(d * c - 1.0).max() < 1e-14:
            break
    beta = front * fraction
    return np.asarray(np.where(near, 1.0 - beta, beta) / 2)
