"""Compare configurations: give each its interval, its differences to its baseline and to the best, and its verdict.

This module decides on which prompts configurations are compared; ``sweep.statistics`` computes the numbers, and
``ranking`` decides which configurations take part and writes the sentences. Everything is paired: a score is compared
with the scores of the others for the same prompt.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_sweep.runs.records import TrialRecord
from lora_sweep.scoring.intervals import Array
from lora_sweep.scoring.metrics import SHARE_SCORERS
from sweep.report.analysis.configurations import OBJECTIVE, Configuration, Number, Trial, TrialSummary, look_up
from sweep.report.analysis.load import Sweep
from sweep.statistics.estimates import Estimate, SeedNoise, count_wins, estimate_mean, estimate_seed_noise
from sweep.statistics.simultaneous import Verdict, compare_with_baselines, decide_verdict, find_tied_group

SCALE = 100.0  # the highest value of the objective: a configuration of zeros and hundreds is a proportion
Scores = dict[str, float]  # prompt id -> value of the objective


@dataclass(frozen=True)
class Standing:
    """What is known about one configuration.

    Attributes:
        quality: mean over prompts and seeds; None if no prompt has a score in every complete trial.
        prompts: how many prompts have a score in every complete trial.
        seeds: how many complete trials the configuration has.
        prompt_noise: the standard error of the mean, as far as the choice of prompts causes it.
        seed_noise: the standard deviation between trainings that differ only in their seed, pooled over the sweep; None
            where no configuration has two seeds.
        versus_baseline: the mean minus the mean of the baseline on the same prompts. The intervals of all ranked
            configurations hold together, so that the best of many does not beat its baseline by luck.
        versus_best: the mean minus the highest mean. The intervals hold together too; a configuration is tied
            unless its whole interval lies below zero.
        wins_over_baseline: on how many prompts it is above, equal to and below its baseline.
        wins_over_best: the same against the best.
        is_tied: whether it is in the group tied with the best; None where it is not ranked.
        verdict: see :func:`sweep.statistics.simultaneous.decide_verdict`.
        forgetting: by how much the loss on the neutral text is above the baseline's, in nats a token.
    """

    configuration: Configuration
    quality: Estimate | None = None
    prompts: int = 0
    seeds: int = 0
    prompt_noise: float | None = None
    seed_noise: float | None = None
    versus_baseline: Estimate | None = None
    versus_best: Estimate | None = None
    wins_over_baseline: tuple[int, int, int] | None = None
    wins_over_best: tuple[int, int, int] | None = None
    is_tied: bool | None = None
    verdict: Verdict | None = None
    forgetting: float | None = None

    @property
    def summary(self) -> TrialSummary:
        return self.configuration.summary


@dataclass(frozen=True)
class Comparison:
    """The standings of all configurations in the sweep's order, and those that are ranked.

    Attributes:
        ranked: indices of the ranked configurations in ``standings``.
        matrix: the scores of the ranked configurations, means over their seeds, on the prompts for which all of them
            have a score, [ranked, prompts].
        best: index of the highest mean in ``standings``.
        is_share: whether the objective is right or wrong on each prompt.
    """

    standings: list[Standing]
    ranked: list[int]
    matrix: Array
    noise: SeedNoise | None
    best: int | None
    is_share: bool

    @property
    def ranked_standings(self) -> list[Standing]:
        return [self.standings[index] for index in self.ranked]


def compare(sweep: Sweep, ranked: list[Configuration]) -> Comparison:
    """The standings of all configurations; those in ``ranked`` are compared with each other and their baselines."""
    scores = [
        [read_scores(trial.record) for trial in configuration.trials if trial.summary.is_scored]
        for configuration in sweep.configurations
    ]
    indices = [
        index
        for index, item in enumerate(sweep.configurations)
        if any(item is configuration for configuration in ranked)
    ]
    prompts = shared_prompts(trial_scores for index in indices for trial_scores in scores[index])
    noise = estimate_seed_noise([stack_scores(scores[index], prompts) for index in indices]) if prompts else None
    is_share = scores_are_shares(sweep)
    standings = []
    for index, configuration in enumerate(sweep.configurations):
        standing = describe_alone(configuration, scores[index], noise if index in indices else None, is_share)
        standings.append(replace(standing, forgetting=average_forgetting(sweep, configuration.trials)))
    matrix = np.array([stack_scores(scores[index], prompts).mean(axis=0) for index in indices])
    best = None
    if indices and prompts:
        compared, best_row = compare_ranked(sweep, [standings[index] for index in indices], matrix, prompts, noise)
        best = indices[best_row]
        for index, standing in zip(indices, compared, strict=True):
            standings[index] = standing
    return Comparison(standings, indices, matrix, noise, best, is_share)


def compare_ranked(
    sweep: Sweep, ranked: list[Standing], matrix: Array, prompts: list[str], noise: SeedNoise | None
) -> tuple[list[Standing], int]:
    """Add differences and verdicts to the standings of the ranked configurations.

    Args:
        matrix: the scores, [ranked, prompts].

    Returns:
        The new standings, and the index of the best.
    """
    seeds = [standing.seeds for standing in ranked]
    group = find_tied_group(matrix, seeds, noise)
    baselines = [score_baselines(sweep, standing.configuration, prompts) for standing in ranked]
    rows = [row for row, baseline in enumerate(baselines) if baseline is not None]
    versus: dict[int, Estimate] = {}
    if rows:
        stacked = np.array([baselines[row] for row in rows])
        gains = compare_with_baselines(matrix[rows], stacked, [seeds[row] for row in rows], noise)
        versus = dict(zip(rows, gains, strict=True))
    compared = []
    for row, (standing, baseline) in enumerate(zip(ranked, baselines, strict=True)):
        compared.append(
            replace(
                standing,
                versus_best=Estimate(0.0, 0.0, 0.0) if row == group.best else group.gaps[row],
                wins_over_best=count_wins(matrix[row], matrix[group.best]),
                is_tied=group.tied[row],
                verdict=decide_verdict(group.tied[row], versus.get(row)),
                versus_baseline=versus.get(row),
                wins_over_baseline=None if baseline is None else count_wins(matrix[row], baseline),
            )
        )
    return compared, group.best


def scores_are_shares(sweep: Sweep) -> bool:
    """Whether the objective is right or wrong on each prompt; all rows of a sweep have one scorer."""
    return any(look_up(trial.record.config, "eval.scorer") in SHARE_SCORERS for trial in sweep.trials)


def read_scores(record: TrialRecord) -> Scores:
    """The score of each prompt that has one."""
    values = {prompt_id: metrics.get(OBJECTIVE) for prompt_id, metrics in record.scores.prompts.items()}
    return {prompt_id: float(value) for prompt_id, value in values.items() if value is not None}


def shared_prompts(scores: Iterable[Scores]) -> list[str]:
    """The prompts that have a score in all of ``scores``, sorted."""
    prompts = [set(trial_scores) for trial_scores in scores]
    return sorted(set.intersection(*prompts)) if prompts else []


def stack_scores(scores: Sequence[Scores], prompts: list[str]) -> Array:
    """The scores as an array, [seeds, prompts]."""
    return np.array([[trial_scores[prompt] for prompt in prompts] for trial_scores in scores])


def describe_alone(
    configuration: Configuration, scores: list[Scores], noise: SeedNoise | None, is_share: bool
) -> Standing:
    """The standing of a configuration before any comparison: its mean with its interval.

    Args:
        scores: the scores of each complete trial.
    """
    prompts = shared_prompts(scores)
    if not prompts:
        return Standing(configuration, seeds=len(scores))
    values, count = stack_scores(scores, prompts).mean(axis=0), len(prompts)
    seeds = math.inf if configuration.summary.is_baseline else len(scores)
    return Standing(
        configuration,
        quality=estimate_mean(values, seeds, noise, SCALE, is_share),
        prompts=count,
        seeds=len(scores),
        prompt_noise=float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None,
        seed_noise=float(np.sqrt(noise.variance)) if noise else None,
    )


def score_baselines(sweep: Sweep, configuration: Configuration, prompts: list[str]) -> Array | None:
    """The mean scores of the baselines of a configuration's trials, [prompts]; None where a score is missing."""
    scores = []
    for trial in configuration.trials:
        baseline = find_baseline(sweep, trial)
        if trial.summary.is_scored and baseline is not None:
            scores.append(read_scores(baseline.record))
    if not scores or not all(baseline_scores.keys() >= set(prompts) for baseline_scores in scores):
        return None
    return np.asarray(stack_scores(scores, prompts).mean(axis=0))


def find_baseline(sweep: Sweep, trial: Trial) -> Trial | None:
    """The baseline that the sweep's file names for ``trial``; if it names none, the most similar one."""
    scored = [other for other in sweep.trials if other.summary.is_baseline and other.summary.is_scored]
    if trial.baseline is not None:
        return next((other for other in scored if other.key == trial.baseline), None)
    wanted = trial.summary
    bits = wanted.eval_bits or wanted.bits
    scored = [other for other in scored if other.summary.is_outdated == wanted.is_outdated]

    def likeness(other: Trial) -> tuple[bool, ...]:
        summary = other.summary
        same = (summary.base == wanted.base, summary.data == wanted.data)
        return *same, (summary.eval_bits or summary.bits) == bits, summary.template == wanted.template

    return max(scored, key=likeness, default=None)


def measure_forgetting(sweep: Sweep, trial: Trial) -> float | None:
    """By how much the loss on the neutral text is above the baseline's, in nats a token."""
    baseline = None if trial.summary.is_baseline else find_baseline(sweep, trial)
    before: Number | None = baseline.summary.neutral_loss if baseline else None
    after = trial.summary.neutral_loss
    return None if before is None or after is None else float(after - before)


def average_forgetting(sweep: Sweep, trials: list[Trial]) -> float | None:
    """The mean over the trials for which it is known, in nats a token; None if it is known for none."""
    losses = [loss for trial in trials if (loss := measure_forgetting(sweep, trial)) is not None]
    return float(np.mean(losses)) if losses else None
