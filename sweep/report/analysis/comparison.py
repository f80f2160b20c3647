"""Entries compared: each with its interval, its difference to its baseline and to the best, and its verdict.

Owns which entries can be compared, and on which prompts; ``sweep.statistics`` owns the comparisons,
``ranking`` the sentences. Everything is paired: an entry's number for a prompt stands beside every other's for the
same prompt.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from lora_sweep.runs.records import TrialRecord
from lora_sweep.scoring.intervals import Array, mean_interval
from lora_sweep.scoring.metrics import SHARE_SCORERS
from sweep.report.analysis.configurations import Entry
from sweep.report.analysis.load import Row, Sweep, dig, is_other
from sweep.statistics.estimates import Estimate, SeedNoise, count_wins, estimate_mean, estimate_seed_noise
from sweep.statistics.simultaneous import compare_with_baselines, decide_verdict, find_tied_group

OBJECTIVE = "quality"
SCALE = 100.0  # of the objective: a row of zeros and hundreds is a proportion
Scores = dict[str, float]  # prompt id -> the objective's number


@dataclass(frozen=True)
class Standing:
    """What is known of one entry.

    Attributes:
        quality: mean over prompts and seeds; None without a number for each prompt.
        prompts: how many have a number.
        seeds: how many complete trials the entry has.
        prompt_noise: the standard error of the mean that the choice of prompts causes.
        seed_noise: the standard deviation between trainings that differ in their seed alone, pooled over the sweep;
            None where no entry has two.
        versus_baseline: paired difference of means; its intervals hold for all ranked entries at once, so that the
            best of many is not taken for better than its baseline by luck.
        versus_best: paired difference of means to the entry with the highest, with simultaneous intervals too: an entry
            is tied where its own is not below zero as a whole.
        against_baseline: on how many prompts it is above, equal to and below its baseline; ``against_best`` likewise.
        tied: whether it is in the group tied with the best; None where it is not ranked.
        verdict: ``high``, ``low``, ``no gain`` or None (see :func:`sweep.statistics.simultaneous.decide_verdict`).
    """

    entry: Entry
    quality: Estimate | None = None
    prompts: int = 0
    seeds: int = 0
    prompt_noise: float | None = None
    seed_noise: float | None = None
    versus_baseline: Estimate | None = None
    versus_best: Estimate | None = None
    against_baseline: tuple[int, int, int] | None = None
    against_best: tuple[int, int, int] | None = None
    tied: bool | None = None
    verdict: str | None = None

    @property
    def row(self) -> Row:
        return self.entry.row


@dataclass(frozen=True)
class Compared:
    """All entries in the sweep's order, and those that are ranked.

    Attributes:
        ranked: places in ``standings``.
        matrix: of the ranked ones, their numbers for each prompt that all have, means over seeds: [ranked, prompts].
        best: place in ``standings`` of the highest mean.
        is_share: the objective is right or wrong on each prompt.
    """

    standings: list[Standing]
    ranked: list[int]
    matrix: Array
    noise: SeedNoise | None
    best: int | None
    is_share: bool


def compare(sweep: Sweep, ranked: list[Entry]) -> Compared:
    """Every entry's standing; those in ``ranked`` are compared with each other and with their baselines.

    Writes the columns ``quality_ci_low`` to ``verdict`` and ``forgetting`` into the rows of the sweep.
    """
    scores = [objective_scores(result) for result in sweep.results]
    of_entry = [[scores[place] for place in entry.places if is_scored(sweep, place)] for entry in sweep.entries]
    places = [place for place, entry in enumerate(sweep.entries) if any(entry is other for other in ranked)]
    prompts = shared_prompts(each for place in places for each in of_entry[place])
    noise = estimate_seed_noise([matrix_of(of_entry[place], prompts) for place in places]) if prompts else None
    is_share = scores_shares(sweep)
    standings = [
        alone(entry, of_entry[place], noise if place in places else None, is_share)
        for place, entry in enumerate(sweep.entries)
    ]
    matrix = np.array([matrix_of(of_entry[place], prompts).mean(axis=0) for place in places])
    best = None
    if places and prompts:
        seeds = [len(of_entry[place]) for place in places]
        found = find_tied_group(matrix, seeds, noise)
        best = places[found.best]
        controls = [control_of(sweep, sweep.entries[place], scores, prompts) for place in places]
        known = [number for number, control in enumerate(controls) if control is not None]
        versus: dict[int, Estimate | None] = dict.fromkeys(range(len(places)))
        if known:
            control = np.array([controls[number] for number in known])
            said = compare_with_baselines(matrix[known], control, [seeds[number] for number in known], noise)
            versus.update(zip(known, said, strict=True))
        for number, place in enumerate(places):
            tied = found.tied[number]
            standings[place] = replace(
                standings[place],
                versus_best=Estimate(0.0, 0.0, 0.0) if number == found.best else found.gaps[number],
                against_best=count_wins(matrix[number], matrix[found.best]),
                tied=tied,
                verdict=decide_verdict(tied, versus[number]),
                versus_baseline=versus[number],
                against_baseline=wins_over(matrix[number], controls[number]),
            )
    for place, standing in enumerate(standings):
        found_scores = [scores[each] for each in sweep.entries[place].places]
        write_columns(sweep, standing, found_scores, noise is None, is_share)
    return Compared(standings, places, matrix, noise, best, is_share)


def scores_shares(sweep: Sweep) -> bool:
    """Whether the objective is right or wrong on each prompt; all rows of a sweep have one scorer."""
    return any(dig(result.config, "eval.scorer") in SHARE_SCORERS for result in sweep.results)


def objective_scores(result: TrialRecord) -> Scores:
    """The objective's number of each prompt that has one."""
    values = {prompt_id: metrics.get(OBJECTIVE) for prompt_id, metrics in result.scores.prompts.items()}
    return {prompt_id: float(value) for prompt_id, value in values.items() if value is not None}


def is_scored(sweep: Sweep, place: int) -> bool:
    row = sweep.rows[place]
    return row["status"] == "complete" and row.get(OBJECTIVE) is not None


def shared_prompts(scores: Iterable[Scores]) -> list[str]:
    """The prompts that all have a number for, in an order that depends on nothing else."""
    each = [set(found) for found in scores]
    return sorted(set.intersection(*each)) if each else []


def matrix_of(scores: list[Scores], prompts: list[str]) -> Array:
    """[seeds, prompts]"""
    return np.array([[each[prompt] for prompt in prompts] for each in scores])


def alone(entry: Entry, scores: list[Scores], noise: SeedNoise | None, is_share: bool) -> Standing:
    """An entry beside no other: its mean with its interval."""
    prompts = shared_prompts(scores)
    if not prompts:
        return Standing(entry, seeds=len(scores))
    values, count = matrix_of(scores, prompts).mean(axis=0), len(prompts)
    seeds = len(scores) if entry.row["kind"] == "trial" else math.inf
    return Standing(
        entry,
        quality=estimate_mean(values, seeds, noise, SCALE, is_share),
        prompts=count,
        seeds=len(scores),
        prompt_noise=float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None,
        seed_noise=float(np.sqrt(noise.variance)) if noise else None,
    )


def control_of(sweep: Sweep, entry: Entry, scores: list[Scores], prompts: list[str]) -> Array | None:
    """The numbers of the baselines of an entry's trials, on the same prompts; None where they have not all of them."""
    found = []
    for place in entry.places:
        baseline = baseline_of(sweep, sweep.rows[place])
        if is_scored(sweep, place) and baseline is not None:
            found.append(scores[next(home for home, row in enumerate(sweep.rows) if row is baseline)])
    whole = [each for each in found if each.keys() >= set(prompts)]
    return matrix_of(whole, prompts).mean(axis=0) if whole and len(whole) == len(found) else None


def wins_over(values: Array, control: Array | None) -> tuple[int, int, int] | None:
    return None if control is None else count_wins(values, control)


def baseline_of(sweep: Sweep, row: Row) -> Row | None:
    """The baseline that the sweep names for ``row``; where it names none, the one most like it in bits and template."""
    scored = [other for other in sweep.rows if other["kind"] == "baseline" and other["status"] == "complete"]
    scored = [other for other in scored if other.get(OBJECTIVE) is not None]
    if isinstance(row.get("baseline"), list):
        named = (other for other in scored if [other["trial_id"], other["eval_id"]] == row["baseline"])
        return next(named, None)
    bits = row["eval_bits"] or row["bits"]
    scored = [other for other in scored if is_other(other) == is_other(row)]

    def likeness(other: Row) -> tuple[bool, ...]:
        same = [other[key] == row[key] for key in ("base", "data")]
        return *same, (other["eval_bits"] or other["bits"]) == bits, other["template"] == row["template"]

    return max(scored, key=likeness, default=None)


def write_columns(sweep: Sweep, standing: Standing, scores: list[Scores], is_alone: bool, is_share: bool) -> None:
    """The ranking's columns of an entry's row and of its trials' rows; a trial's interval is over its own prompts.

    Args:
        is_alone: no seed noise is known, so that an entry of one trial has that trial's interval.
    """
    entry, estimate = standing.entry, standing.quality
    shared = {
        "delta_baseline": standing.versus_baseline and standing.versus_baseline.value,
        "delta_best": standing.versus_best and standing.versus_best.value,
        "tied_with_best": standing.tied,
        "verdict": standing.verdict,
    }
    known = []
    for place, found in zip(entry.places, scores, strict=True):
        row = sweep.rows[place]
        if len(entry.places) > 1 or not is_alone:
            low, high = mean_interval(list(found.values()), SCALE, is_share) or (None, None)
            row.update({"quality_ci_low": low, "quality_ci_high": high})
        row.update({**shared, "forgetting": forgetting(sweep, row)})
        known += [row["forgetting"]] if row["forgetting"] is not None else []
    low, high = (estimate.low, estimate.high) if estimate else (None, None)
    mean = float(np.mean(known)) if known else None
    if estimate and len(entry.places) > 1:  # summed in another order elsewhere: the last bit could differ
        entry.row[OBJECTIVE] = estimate.value
    entry.row.update({"quality_ci_low": low, "quality_ci_high": high, **shared, "forgetting": mean})


def forgetting(sweep: Sweep, row: Row) -> float | None:
    """By how much the loss on the neutral text is above the baseline's, in nats a token."""
    baseline = baseline_of(sweep, row) if row["kind"] == "trial" else None
    before, after = (baseline or {}).get("neutral_loss"), row.get("neutral_loss")
    return None if before is None or after is None else float(after - before)
