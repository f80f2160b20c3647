"""The largest of many studentised statistics when nothing is true: its 95 % quantile, by the bootstrap.

Pure numpy on matrices whose columns are prompts; knows nothing of entries, seeds or verdicts. In a draw every row has
the same prompts, so that the statistics hang together as the rows do (Romano and Wolf 2005). A draw's errors are
normal ones beside, where ``loads`` says so: the noise of seeds.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

from lora_sweep.scoring.intervals import BOOTSTRAP_SEED, LEVEL, Array, draw_shares

CHUNK = 500  # draws at once: for 1,000 rows, 4 MB an array


def quantile_of_best(data: Array, pairs: Array, own: Array, draws: int) -> float:
    """Of max over i of (mean of b* - mean of i) / s(b*, i), where b* is the draw's best row of the centred ``data``.

    Args:
        data: (rows, prompts).
        pairs: s^2 / n of each pair of rows, see ``pair_variances``.
        own: the further variance of each row's mean.
    """
    n = data.shape[1]
    residuals = data - data.mean(axis=0)  # what a prompt does to all rows is in no difference
    weight, correlation = shrinkage(residuals)
    sd = residuals.std(axis=1) / math.sqrt(n)
    independent = sd[:, None] ** 2 + sd**2 - 2 * correlation * sd[:, None] * sd
    errors = np.sqrt((1 - weight) * pairs * (n - 1) / n + weight * independent + own[:, None] + own)
    errors[errors == 0.0] = np.inf
    largest = []
    for means in drawn(residuals, np.sqrt(own), weight, correlation, draws):
        behind = means.max(axis=1, keepdims=True) - means
        largest.append((behind / errors[means.argmax(axis=1)]).max(axis=1))
    return upper_quantile(np.concatenate(largest))


def quantile_of_largest(values: Array, loads: Array, draws: int) -> float:
    """Of max over the rows of |mean| / s, the rows of ``values``, (rows, prompts), being centred.

    ``loads``: (rows, sources), the deviations of each row's mean that independent normal sources cause.
    """
    n = values.shape[1]
    weight, correlation = shrinkage(values)
    errors = np.sqrt(values.var(axis=1) / n + (loads**2).sum(axis=1))
    errors[errors <= 1e-9 * np.abs(values).max()] = np.inf
    found = [(np.abs(means) / errors).max(axis=1) for means in drawn(values, loads, weight, correlation, draws)]
    return upper_quantile(np.concatenate(found))


def drawn(values: Array, loads: Array, weight: float, correlation: float, draws: int) -> Iterator[Array]:
    """Means of the centred rows of ``values`` in ``draws`` draws, (some draws, rows) at a time.

    ``weight`` of their variance is drawn from normal deviates with one ``correlation`` between any two, the rest from
    the prompts. ``loads`` as in quantile_of_largest, or (rows,) for a source a row.
    """
    n = values.shape[1]
    centred = math.sqrt(1.0 - weight) * (values - values.mean(axis=1, keepdims=True)).T
    common, single = (math.sqrt(weight * part / n) * values.std(axis=1) for part in (correlation, 1.0 - correlation))
    shares, generator = draw_shares(n, draws), np.random.default_rng(BOOTSTRAP_SEED)
    for start in range(0, draws, CHUNK):
        means = shares[start : start + CHUNK] @ centred
        if weight:
            means += generator.standard_normal(means.shape) * single
            means += generator.standard_normal((len(means), 1)) * common
        if loads.any():
            sources = generator.standard_normal((len(means), loads.shape[-1]))
            means += sources * loads if loads.ndim == 1 else sources @ loads.T
        yield means


def shrinkage(values: Array) -> tuple[float, float]:
    """(how much of the correlations between rows is to be taken for chance, 0-1; the correlation common to them).

    With few prompts, correlations of many rows differ mostly by chance, and the largest of statistics that seem
    correlated is too small: from 12 prompts the 95 % quantile for 100 equal rows was 3.7, where 4.3 is true, and the
    group that should hold all of 20 rows in 95 % of sweeps did in 90 %. So correlations are drawn towards their mean,
    as far as their summed variance goes into their summed squares (Schäfer and Strimmer 2005, equation 8, with the
    target of Ledoit and Wolf 2003).
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


def pair_variances(data: Array) -> Array:
    """s^2 / n of each pair's paired differences, (rows, rows); equal differences give exactly zero."""
    variances = np.array([(row - data).var(axis=1, ddof=1) for row in data]) / data.shape[1]
    return np.where(variances <= (1e-9 * np.abs(data).max()) ** 2, 0.0, variances)


def upper_quantile(largest: Array) -> float:
    """The LEVEL quantile plus two of its standard errors, so that it is seldom too small by the luck of the draws.

    No less than one comparison needs: means of three resampled values cannot be as far off as normal ones, and two
    equal rows were told apart by 3 prompts in 10 % of sweeps.
    """
    error = math.sqrt(LEVEL * (1.0 - LEVEL) / largest.size)
    single = float(ndtri(0.5 + LEVEL / 2))
    return max(single, float(np.quantile(largest, min(1.0, LEVEL + 2.0 * error))))
