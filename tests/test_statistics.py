"""sweep/statistics.py and sweep/simultaneous.py, tested as statistics: by simulation, by hand, and in any order.

A share of 1,000 simulated sweeps that is 95 % in truth lies above 93.6 % in 97.5 % of cases: that is the bound here,
where the claim is "95 % or more". Simulations of many sweeps take 2,000 draws for 10,000, which is a third of the
time; the slow ones take all.
"""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_sweep.intervals import Array
from sweep.simultaneous import shrinkage
from sweep.statistics import (
    Estimate,
    SeedNoise,
    against_control,
    difference,
    interaction,
    main_effect,
    mean,
    seed_noise,
    tied_with_best,
    verdict,
    wins,
    with_seeds,
)

DRAWS = 2_000
AT_LEAST_95 = 0.936


def null_scores(generator: np.random.Generator, k: int, n: int, kind: str) -> Array:
    """Scores of ``k`` equal entries on ``n`` prompts, some of which are harder for all of them."""
    hard, own = generator.standard_normal((1, n)), generator.standard_normal((k, n))
    if kind == "normal":
        return np.asarray(25 + 8 * hard + 6 * own)
    if kind == "leaning":  # as quality is: most texts score low, a few high
        return np.asarray(np.clip(20 * np.exp(0.5 * hard + 0.5 * own), 0, 100))
    return np.asarray(np.round(4 / (1 + np.exp(-hard - own))) * 25)  # one of five marks


def holding_all(k: int, n: int, kind: str, sweeps: int, draws: int) -> float:
    """In which share of null sweeps the tied group holds all entries."""
    generator = np.random.default_rng(k * n)
    found = [tied_with_best(null_scores(generator, k, n, kind), [1] * k, None, draws).tied for _ in range(sweeps)]
    return float(np.mean([all(tied) for tied in found]))


@pytest.mark.parametrize(
    ("k", "n", "kind"), [(2, 50, "marks"), (8, 50, "normal"), (20, 12, "normal"), (20, 50, "leaning")]
)
def test_of_equal_entries_all_are_tied_in_95_percent_of_sweeps(k: int, n: int, kind: str) -> None:
    assert holding_all(k, n, kind, 1_000, DRAWS) >= AT_LEAST_95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "leaning", "marks"])
@pytest.mark.parametrize(("k", "n"), [(2, 12), (2, 50), (8, 12), (8, 50), (20, 12), (20, 30), (20, 50), (100, 12)])
def test_of_equal_entries_all_are_tied_at_every_size(k: int, n: int, kind: str) -> None:
    assert holding_all(k, n, kind, 1_000, 10_000) >= AT_LEAST_95


def test_the_tied_group_is_no_larger_than_95_percent_ask_for() -> None:
    assert holding_all(8, 50, "normal", 500, DRAWS) <= 0.98


def test_a_planted_effect_is_found_in_90_percent_of_sweeps() -> None:
    """Seven points, where the paired differences of a prompt have a standard deviation of 8.5 (so 1.2 for a mean of
    50): found means that the group tied with the best is that entry alone, and that it alone beats its baseline.
    """
    generator, found, better = np.random.default_rng(3), 0, 0
    for _ in range(200):
        scores = null_scores(generator, 9, 50, "normal")
        baseline, scores = scores[8], scores[:8]
        scores[5] += 7
        best = tied_with_best(scores, [1] * 8, None, DRAWS)
        found += best.best == 5 and sum(best.tied) == 1
        sides = [each.side for each in against_control(scores, np.tile(baseline, (8, 1)), [1] * 8, None, DRAWS)]
        better += sides[5] == "better"
    assert found >= 180
    assert better >= 180


@pytest.mark.parametrize(("k", "n", "kind"), [(1, 12, "normal"), (8, 50, "leaning"), (20, 12, "normal")])
def test_of_entries_equal_to_their_baseline_none_is_called_otherwise_in_95_percent(k: int, n: int, kind: str) -> None:
    """One baseline for all, as most sweeps have."""
    generator, quiet = np.random.default_rng(k), 0
    for _ in range(500):
        scores = null_scores(generator, k + 1, n, kind)
        found = against_control(scores[1:], np.tile(scores[0], (k, 1)), [1] * k, None, DRAWS)
        quiet += all(each.side == "undecided" for each in found)
    assert quiet >= 0.93 * 500  # two standard errors of 500 below 95 %


@pytest.mark.parametrize(("n", "kind"), [(12, "normal"), (50, "leaning"), (50, "marks")])
def test_paired_differences_hold_the_truth_in_93_to_97_percent(n: int, kind: str) -> None:
    generator, held = np.random.default_rng(n), 0
    for _ in range(1_500):
        one, other = null_scores(generator, 2, n, kind)
        found = difference(one + 3.0, other)
        held += found.low is not None and found.high is not None and found.low <= 3.0 <= found.high
    assert 0.93 <= held / 1_500 <= 0.97


def null_runs(generator: np.random.Generator, k: int, n: int, seeds: int, spread: float) -> Array:
    """(entries, seeds, prompts): equal entries, whose trainings differ by ``spread`` and by 6 a prompt."""
    shape = (k, seeds, n)
    hard, trained = 8 * generator.standard_normal((1, 1, n)), spread * generator.standard_normal((k, seeds, 1))
    return np.asarray(25 + hard + trained + 6 * generator.standard_normal(shape))


def test_where_seeds_add_noise_one_seed_misleads_and_several_do_not() -> None:
    generator, several, single = np.random.default_rng(5), 0, 0
    for _ in range(400):
        runs = null_runs(generator, 8, 50, 3, spread=2.0)
        noise = seed_noise(list(runs))
        several += all(tied_with_best(runs.mean(axis=1), [3] * 8, noise, DRAWS).tied)
        single += all(tied_with_best(runs[:, 0], [1] * 8, None, DRAWS).tied)
    assert several >= 0.928 * 400  # two standard errors of 400 below 95 %
    assert single <= 0.3 * 400


def test_intervals_with_seed_noise_hold_the_truth() -> None:
    generator, held, differ = np.random.default_rng(6), 0, 0
    for _ in range(800):
        runs = null_runs(generator, 6, 50, 3, spread=2.0)
        noise, means = seed_noise(list(runs)), runs.mean(axis=1)
        one, two = mean(means[0], 3, noise, 100.0), difference(means[0], means[1], (3, 3), noise)
        held += one.low is not None and one.high is not None and one.low <= 25.0 <= one.high
        differ += two.side == "undecided"
    assert 0.93 <= held / 800 <= 0.975
    assert 0.93 <= differ / 800 <= 0.975


# The order of trials.


def test_no_number_depends_on_the_order_of_the_entries() -> None:
    generator = np.random.default_rng(8)
    scores = np.round(null_scores(generator, 30, 20, "leaning"), 1)
    scores[4], scores[11:14] = scores[9], scores[2]  # equal ones among them
    baselines, seeds = np.round(null_scores(generator, 30, 20, "leaning"), 1), generator.integers(1, 4, 30)
    seeds[[4, 9]], seeds[[2, 11, 12, 13]] = 2, 1
    baselines[4], baselines[11:14] = baselines[9], baselines[2]
    runs = [generator.normal(scores[i], 3.0, (seeds[i], 20)) for i in range(30)]
    noise = seed_noise(runs)
    best = tied_with_best(scores, seeds.tolist(), noise, DRAWS)
    versus = against_control(scores, baselines, seeds.tolist(), noise, DRAWS)
    for _ in range(5):
        order = generator.permutation(30)
        assert seed_noise([runs[i][::-1] for i in order]) == noise
        again = tied_with_best(scores[order], seeds[order].tolist(), noise, DRAWS)
        assert (scores[order][again.best] == scores[best.best]).all()
        assert again.tied == [best.tied[i] for i in order]
        assert again.gaps == [best.gaps[i] for i in order]  # to the last bit
        there = against_control(scores[order], baselines[order], seeds[order].tolist(), noise, DRAWS)
        assert there == [versus[i] for i in order]


def test_no_number_depends_on_the_order_of_the_contexts() -> None:
    generator = np.random.default_rng(9)
    cells, seeds = generator.normal(30, 9, (5, 3, 2, 20)), generator.integers(1, 4, (5, 3, 2))
    noise = SeedNoise(2.0, 6, 0.5, 100)
    order = generator.permutation(5)
    first = interaction(cells, seeds, noise, 100.0, draws=DRAWS)
    assert interaction(cells[order], seeds[order], noise, 100.0, draws=DRAWS) == first
    effect = main_effect(cells[:, :, 0], seeds[:, :, 0], noise, 100.0, draws=DRAWS)
    assert main_effect(cells[order, :, 0], seeds[order, :, 0], noise, 100.0, draws=DRAWS) == effect


def test_another_process_draws_the_same() -> None:
    scores = null_scores(np.random.default_rng(1), 4, 12, "normal")
    assert tied_with_best(scores, [1] * 4) == tied_with_best(scores.copy(), [1] * 4)


# By hand.


def test_the_noise_of_seeds_is_an_analysis_of_variance() -> None:
    """Means 2 and 4, nothing left over; means 1.5 and 4.5, residuals of a half: sums of squares 2, 0, 4.5, 1."""
    noise = seed_noise([[[1, 3], [3, 5]], [[1, 2], [3, 6]], [[7, 7]]])
    assert noise == SeedNoise(between=3.25, between_df=2, within=0.25, within_df=2)
    assert noise.variance == 3.0
    assert SeedNoise(1.0, 2, 1.5, 2).variance == 0.0
    assert seed_noise([[[1, 2, 3]], [[4, 5, 6]]]) is None
    assert seed_noise([]) is None


def test_variances_add_with_satterthwaite_s_degrees_of_freedom() -> None:
    """2 over 3 prompts and half of 3.25 - 0.25: 3.5 of 12.25 / (4/2 + (10.5625/2 + 0.0625/2) / 4) degrees."""
    variances, df = with_seeds(np.array([2.0]), 3, np.array([0.5]), SeedNoise(3.25, 2, 0.25, 2))
    assert variances.tolist() == [3.5]
    assert df.tolist() == pytest.approx([3.680751])
    assert with_seeds(np.array([2.0]), 3, np.array([0.5]), None)[1].tolist() == [2.0]


def test_a_difference_of_two_prompts_by_hand() -> None:
    """Differences 1 and 3: 2 +- 12.7062 * sqrt(2 / 2)."""
    found = difference([5.0, 4.0], [4.0, 1.0])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, -10.7062, 14.7062), abs=1e-3)
    assert found.side == "undecided"


def test_one_comparison_has_student_s_interval_nearly() -> None:
    """Differences -1, 0, ... 10 over twelve prompts: 4.5 +- 2.2010 * sqrt(13 / 12)."""
    scores = np.arange(-1.0, 11.0)
    (found,) = against_control(scores[None], np.zeros((1, 12)), [1])
    assert found.value == 4.5
    assert found.high is not None
    assert found.high - found.value == pytest.approx(2.2010 * math.sqrt(13 / 12), rel=0.03)
    assert found.side == "better"
    assert against_control(-scores[None], np.zeros((1, 12)), [1])[0].side == "worse"


def test_prompts_are_won_tied_and_lost() -> None:
    assert wins([3, 2, 1, 0.1 + 0.2], [1, 2, 3, 0.3]) == (1, 2, 1)


def test_a_clear_ranking_by_hand() -> None:
    """The second is 10 points behind on every prompt but for a little; the third follows the first."""
    base = np.linspace(10, 60, 20)
    wave = np.where(np.arange(20) % 2, 1.0, -1.0)
    best = tied_with_best([base, base - 10 + wave, base - 0.1 + 2 * wave, base - 0.1 + 2 * wave], [1] * 4)
    assert best.best == 0
    assert best.tied == [True, False, True, True]
    assert [gap.value for gap in best.gaps] == pytest.approx([0.1, -10.0, -0.1, -0.1])
    assert [gap.side for gap in best.gaps] == ["undecided", "worse", "undecided", "undecided"]


def test_effects_and_interactions_by_hand() -> None:
    """Factor a brings 2 at the first level of b and 6 at its second, in both contexts: 4 on average, 4 more at b."""
    noise = np.random.default_rng(2).normal(0, 0.5, (2, 2, 2, 30))
    means = np.array([[10.0, 20.0], [12.0, 26.0]])
    cells = means[:, :, None] + noise + np.linspace(-5, 5, 30)
    found = interaction(cells, np.ones((2, 2, 2)), scale=100.0)
    assert [[cell.value for cell in line] for line in found.cells] == [
        pytest.approx([10.0, 20.0], abs=0.3),
        pytest.approx([12.0, 26.0], abs=0.3),
    ]
    assert found.visible
    assert found.place == (1, 1)
    assert found.difference.value == pytest.approx(4.0, abs=0.4)
    effect = main_effect(cells.swapaxes(1, 2).reshape(4, 2, 30), np.ones((4, 2)), scale=100.0)
    assert [level.value for level in effect.levels] == pytest.approx([15.0, 19.0], abs=0.3)
    assert [each.value for each in effect.contrasts] == pytest.approx([4.0], abs=0.3)
    assert effect.contrasts[0].side == "better"


def test_the_clearest_interaction_is_named_and_none_is_seen_in_noise() -> None:
    generator = np.random.default_rng(4)
    cells = generator.normal(30, 3, (2, 3, 4, 40))
    assert not interaction(cells, np.ones((2, 3, 4))).visible
    cells[:, 2, 3] -= 8
    found = interaction(cells, np.ones((2, 3, 4)))
    assert found.visible
    assert found.place == (2, 3)
    assert found.difference.side == "worse"


BETTER, WORSE, UNDECIDED = Estimate(2.0, 1.0, 3.0), Estimate(-2.0, -3.0, -1.0), Estimate(1.0, -1.0, 3.0)


def test_what_the_verdict_says() -> None:
    assert verdict(True, BETTER) == "high"
    assert verdict(False, BETTER) == "low"
    assert verdict(True, WORSE) == verdict(False, WORSE) == "low"
    assert verdict(True, UNDECIDED) == verdict(False, UNDECIDED) == "no gain"
    assert verdict(True, Estimate(9.0, None, None)) == "no gain"  # one prompt
    assert verdict(False, None) == "low"
    assert verdict(True, None) is None


# What is hardly data.


def test_one_entry_and_one_prompt_and_no_difference() -> None:
    assert tied_with_best([[1.0, 2.0]], [1]).tied == [True]
    one_prompt = tied_with_best([[1.0], [9.0]], [1, 1])
    assert (one_prompt.best, one_prompt.tied) == (1, [True, True])
    assert against_control([[9.0]], [[1.0]], [1]) == [Estimate(8.0, None, None)]
    assert mean([9.0]) == Estimate(9.0, None, None)
    equal = tied_with_best([[1.0, 5.0], [1.0, 5.0]], [1, 1])
    assert equal.tied == [True, True]
    assert against_control(np.empty((0, 5)), np.empty((0, 5)), []) == []


def test_a_difference_that_never_varies_is_believed_where_a_sign_test_would() -> None:
    few, many = np.arange(4.0), np.arange(20.0)
    assert tied_with_best([few, few + 0.1], [1, 1]).tied == [True, True]
    assert tied_with_best([many, many + 0.1], [1, 1]).tied == [False, True]
    assert against_control([few + 0.1], [few], [1])[0].side == "undecided"
    assert against_control([many + 0.1], [many], [1])[0].side == "better"


def test_a_baseline_has_no_noise_of_seeds() -> None:
    scores, noise = np.random.default_rng(1).normal(30, 5, 40), SeedNoise(9.0, 10, 1.0, 400)
    assert mean(scores, math.inf, noise, 100.0) == mean(scores, 1, None, 100.0)
    wide, narrow = mean(scores, 1, noise, 100.0), mean(scores, 4, noise, 100.0)
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.low < narrow.low < narrow.value == wide.value


SCORES = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 25.0, 50.1, 100.0]), min_size=n, max_size=n), min_size=1)
)


@settings(deadline=None, max_examples=60)
@given(scores=SCORES, noise=st.none() | st.just(SeedNoise(4.0, 1, 5.0, 3)) | st.just(SeedNoise(4.0, 3, 1.0, 9)))
def test_any_scores_have_an_answer(scores: list[list[float]], noise: SeedNoise | None) -> None:
    k = len(scores)
    found = tied_with_best(scores, [1] * k, noise, draws=200)
    means = [math.fsum(row) / len(row) for row in scores]
    assert means[found.best] == max(means)
    assert found.tied[found.best]
    versus = against_control(scores, scores[::-1], [1] * k, noise, draws=200)
    for estimate in [*found.gaps, *versus]:
        assert math.isfinite(estimate.value)
        assert (estimate.low is None) == (estimate.high is None)
        assert estimate.low is None or estimate.low <= estimate.value + 1e-9
    for tied, gap, value in zip(found.tied, found.gaps, means, strict=True):
        assert tied == (gap.side != "worse")
        assert tied or value < max(means)


def test_chance_correlations_count_as_chance_and_true_ones_do_not() -> None:
    generator = np.random.default_rng(1)
    weight, correlation = shrinkage(generator.standard_normal((40, 12)))
    assert weight > 0.8
    assert correlation < 0.05
    groups = np.repeat(generator.standard_normal((2, 200)), 20, axis=0) + 0.1 * generator.standard_normal((40, 200))
    assert shrinkage(groups)[0] < 0.05


@pytest.mark.slow
def test_a_thousand_entries_take_seconds() -> None:
    scores = null_scores(np.random.default_rng(1), 1_000, 50, "normal")
    start = time.process_time()
    assert sum(tied_with_best(scores, [1] * 1_000, SeedNoise(1.0, 20, 0.1, 900)).tied) > 900
    assert time.process_time() - start < 8.0  # 1.2 s
