"""What one varied hyperparameter (a factor) changes on average over all others, and whether two of them interact.

A context is one choice of all other hyperparameters. Every context has every level of the factor, so that all levels
are compared in the same contexts.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lora_sweep.scoring.intervals import BOOTSTRAP_DRAWS, Array
from sweep.statistics.estimates import Estimate, SeedNoise, estimate_mean
from sweep.statistics.simultaneous import estimate_together


@dataclass(frozen=True)
class Effect:
    """The mean of each level of a factor, and its contrasts: the differences of the other levels to the first.

    The intervals of the contrasts hold all together.
    """

    levels: list[Estimate]
    contrasts: list[Estimate]


@dataclass(frozen=True)
class Interaction:
    """The means of the cells of two factors, and the clearest difference of differences.

    Attributes:
        cells: [levels of the first factor][levels of the second]
        is_visible: whether the interval of ``difference`` excludes zero. The intervals of all cells' differences of
            differences hold together.
        difference: (cell [a, b] - cell [0, b]) - (cell [a, 0] - cell [0, 0]): how much more level a of the first factor
            changes at level b of the second than at its first level.
        cell: (a, b), the levels with the clearest difference of differences.
    """

    cells: list[list[Estimate]]
    is_visible: bool
    difference: Estimate
    cell: tuple[int, int]


def estimate_effect(
    blocks: ArrayLike,
    seeds: ArrayLike,
    noise: SeedNoise | None = None,
    scale: float = 1.0,
    is_share: bool = False,
    draws: int = BOOTSTRAP_DRAWS,
) -> Effect:
    """The main effect of a factor: what its levels change on average over the contexts.

    Args:
        blocks: [contexts, levels, prompts]
        seeds: [contexts, levels], how many trainings each row of scores is averaged over.
        scale, is_share: see :func:`lora_sweep.scoring.intervals.mean_interval`.
    """
    values, shares = average_contexts(blocks, seeds)
    levels = [
        estimate_mean(row, 1.0 / share, noise, scale, is_share)
        for row, share in zip(values, shares.tolist(), strict=True)
    ]
    deviations = np.diag(np.sqrt(shares))
    contrasts = estimate_together(values[1:] - values[0], deviations[1:] - deviations[0], noise, draws)
    return Effect(levels, contrasts)


def estimate_interaction(
    cells: ArrayLike,
    seeds: ArrayLike,
    noise: SeedNoise | None = None,
    scale: float = 1.0,
    is_share: bool = False,
    draws: int = BOOTSTRAP_DRAWS,
) -> Interaction:
    """Whether what one factor changes depends on another, on average over the contexts.

    Args:
        cells: [contexts, levels of a, levels of b, prompts], with two levels or more of each factor.
        seeds: [contexts, levels of a, levels of b], how many trainings each row of scores is averaged over.
        scale, is_share: see :func:`lora_sweep.scoring.intervals.mean_interval`.
    """
    values, shares = average_contexts(cells, seeds)  # [a, b, prompts], [a, b]
    means = [
        [estimate_mean(row, 1.0 / share, noise, scale, is_share) for row, share in zip(rows, row_shares, strict=True)]
        for rows, row_shares in zip(values, shares.tolist(), strict=True)
    ]
    a, b, n = values.shape
    deviations = np.diag(np.sqrt(shares.ravel())).reshape(a, b, a * b)
    doubled, loads = subtract_first_levels(values), subtract_first_levels(deviations)  # [a - 1, b - 1, ...]
    estimates = estimate_together(doubled.reshape(-1, n), loads.reshape(-1, a * b), noise, draws)
    clearest = max(range(len(estimates)), key=lambda i: count_margins(estimates[i]))
    cell = (clearest // (b - 1) + 1, clearest % (b - 1) + 1)
    return Interaction(means, estimates[clearest].side != "undecided", estimates[clearest], cell)


def average_contexts(blocks: ArrayLike, seeds: ArrayLike) -> tuple[Array, Array]:
    """Means over the contexts, and the factor by which the variance of seeds enters each mean.

    Both are the same to the last bit for any order of the contexts.
    """
    values, counts = np.asarray(blocks, dtype=np.float64), np.asarray(seeds, dtype=np.float64)
    shares = np.sort(1.0 / counts, axis=0).sum(axis=0) / len(counts) ** 2
    return np.sort(values, axis=0).sum(axis=0) / len(values), shares


def subtract_first_levels(values: Array) -> Array:
    """Differences of differences to the first level of both factors, [a - 1, b - 1, ...]."""
    changes = values[1:] - values[:1]
    return changes[:, 1:] - changes[:, :1]


def count_margins(estimate: Estimate) -> float:
    """How far an estimate is from zero, in units of its margin."""
    if estimate.low is None or estimate.high is None:
        return 0.0
    margin = (estimate.high - estimate.low) / 2
    if margin == 0.0:
        return math.inf if estimate.value else 0.0
    return abs(estimate.value) / margin
