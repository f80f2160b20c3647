"""Thresholds for many comparisons at once, by the bootstrap: how large does the largest statistic get by chance?

All functions work on matrices with one column per prompt. In each draw all rows get the same resampled prompts, so that
the statistics are correlated as the rows are (Romano and Wolf 2005). The noise of seeds is simulated: normal errors are
added to the means of each draw.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

from lora_sweep.scoring.intervals import BOOTSTRAP_SEED, LEVEL, Array, draw_shares

CHUNK_DRAWS = 500  # draws at once: for 1,000 rows, 4 MB per array


def bootstrap_best(data: Array, pairs: Array, seed_variances: Array, draws: int) -> float:
    """The 95 % quantile of max over i of (mean of b* - mean of i) / s(b*, i), where b* is the best row of the draw.

    The rows are centred first, so that all true means are equal.

    Args:
        data: [rows, prompts], the scores.
        pairs: [rows, rows], s^2 / n of each pair of rows, see :func:`compute_pair_variances`.
        seed_variances: [rows], the variance that seeds add to the mean of each row.
        draws: the number of bootstrap draws.
    """
    n = data.shape[1]
    residuals = data - data.mean(axis=0)  # the mean of a prompt cancels in every difference
    weight, correlation = estimate_shrinkage(residuals)
    sd = residuals.std(axis=1) / math.sqrt(n)
    independent = sd[:, None] ** 2 + sd**2 - 2 * correlation * sd[:, None] * sd  # [rows, rows]
    seeds = seed_variances[:, None] + seed_variances
    errors = np.sqrt((1 - weight) * pairs * (n - 1) / n + weight * independent + seeds)
    errors[errors == 0.0] = np.inf
    largest = []
    for means in draw_means(residuals, np.sqrt(seed_variances), weight, correlation, draws):  # [some draws, rows]
        behind = means.max(axis=1, keepdims=True) - means
        largest.append((behind / errors[means.argmax(axis=1)]).max(axis=1))
    return take_upper_quantile(np.concatenate(largest))


def bootstrap_largest(values: Array, loads: Array, draws: int) -> float:
    """The 95 % quantile of max over the rows of |mean| / s. The rows are centred first.

    Args:
        values: [rows, prompts], scores or differences of scores.
        loads: [rows, sources]; independent normal deviates, one for each source, are multiplied by it and added to the
            means.
        draws: the number of bootstrap draws.
    """
    n = values.shape[1]
    weight, correlation = estimate_shrinkage(values)
    errors = np.sqrt(values.var(axis=1) / n + (loads**2).sum(axis=1))
    errors[errors <= 1e-9 * np.abs(values).max()] = np.inf
    draws_of_means = draw_means(values, loads, weight, correlation, draws)
    return take_upper_quantile(np.concatenate([(np.abs(means) / errors).max(axis=1) for means in draws_of_means]))


def draw_means(values: Array, loads: Array, weight: float, correlation: float, draws: int) -> Iterator[Array]:
    """Resample the means of the centred rows of ``values``: ``draws`` in all, [some draws, rows] at a time.

    Args:
        values: [rows, prompts]
        loads: as in :func:`bootstrap_largest`, or [rows] if each row has one source.
        weight, correlation: from :func:`estimate_shrinkage`. The share ``weight`` of the variance is drawn from normal
            deviates with the same ``correlation`` between any two rows, the rest from the prompts.
    """
    n = values.shape[1]
    centred = math.sqrt(1.0 - weight) * (values - values.mean(axis=1, keepdims=True)).T  # [prompts, rows]
    common, single = (math.sqrt(weight * part / n) * values.std(axis=1) for part in (correlation, 1.0 - correlation))
    shares, generator = draw_shares(n, draws), np.random.default_rng(BOOTSTRAP_SEED)  # shares: [draws, prompts]
    for start in range(0, draws, CHUNK_DRAWS):
        means = shares[start : start + CHUNK_DRAWS] @ centred
        if weight:
            means += generator.standard_normal(means.shape) * single
            means += generator.standard_normal((len(means), 1)) * common
        if loads.any():
            sources = generator.standard_normal((len(means), loads.shape[-1]))
            means += sources * loads if loads.ndim == 1 else sources @ loads.T
        yield means


def estimate_shrinkage(values: Array) -> tuple[float, float]:
    """The weight (0 to 1) with which to shrink the correlations between rows towards their mean, and that mean.

    With few prompts, the correlations of many rows differ mostly by chance, and a threshold computed from them is too
    small: with 12 prompts the 95 % quantile for 100 equal rows came out as 3.7 (the true value is 4.3), and a tied
    group that should hold all of 20 rows in 95 % of sweeps held them in 90 %. The weight is the summed
    variance of the correlations divided by their summed squares (Schäfer and Strimmer 2005, equation 8, with the target
    of Ledoit and Wolf 2003).

    Args:
        values: [rows, prompts]
    """
    m, n = values.shape
    if m < 3:
        return 0.0, 0.0
    sd = values.std(axis=1, ddof=1, keepdims=True)
    z = np.divide(values - values.mean(axis=1, keepdims=True), sd, out=np.zeros(values.shape), where=sd > 0)
    others = ~np.eye(m, dtype=bool)
    products = (z @ z.T)[others]
    variances = n / (n - 1) ** 3 * (((z**2) @ (z**2).T)[others] - products**2 / n)
    correlations = products / (n - 1)
    mean = float(correlations.mean())
    total = float(((correlations - mean) ** 2).sum())
    weight = float(np.clip(variances.sum() / total, 0.0, 1.0)) if total > 1e-12 else 0.0
    return weight, min(max(mean, 0.0), 1.0)


def compute_pair_variances(data: Array) -> Array:
    """s^2 / n of the paired differences of any two rows, [rows, rows]; exactly zero if all differences are equal."""
    variances = np.array([(row - data).var(axis=1, ddof=1) for row in data]) / data.shape[1]
    return np.where(variances <= (1e-9 * np.abs(data).max()) ** 2, 0.0, variances)


def take_upper_quantile(largest: Array) -> float:
    """The LEVEL quantile of the draws plus two of its standard errors, so that it is seldom too small by chance.

    It is never smaller than the threshold for a single comparison: the resampled mean of three values cannot be as far
    from the truth as a normal deviate, and without this limit 3 prompts told two equal rows apart in 10 % of sweeps.
    """
    error = math.sqrt(LEVEL * (1.0 - LEVEL) / largest.size)
    single = float(ndtri(0.5 + LEVEL / 2))
    return max(single, float(np.quantile(largest, min(1.0, LEVEL + 2.0 * error))))
