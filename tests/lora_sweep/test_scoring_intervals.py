"""intervals: checked against tables and textbooks, by hand, by simulation, and on values at the edges."""

import math
from random import Random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lora_sweep.scoring.intervals import (
    bootstrap_interval,
    draw_shares,
    mean_interval,
    outer_quantiles,
    student_quantile,
    wilson_interval,
)

VALUES = st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=2, max_size=30)
NORMAL_SCORES = np.random.default_rng(3).normal(size=200)

# ---- Student's quantiles ----


@pytest.mark.parametrize(
    ("p", "table"),
    [
        (0.95, {1: 6.3138, 2: 2.9200, 5: 2.0150, 10: 1.8125, 20: 1.7247, 30: 1.6973, 120: 1.6577}),
        (0.975, {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 10: 2.2281, 30: 2.0423, 120: 1.9799}),
        (0.995, {1: 63.6567, 2: 9.9248, 5: 4.0321, 10: 3.1693, 30: 2.7500, 120: 2.6174}),
        (0.9995, {1: 636.6192, 2: 31.5991, 5: 6.8688, 10: 4.5869, 30: 3.6460, 120: 3.3735}),
    ],
)
def test_students_quantiles_are_a_tables(p: float, table: dict[int, float]) -> None:
    assert student_quantile(p, list(table)) == pytest.approx(list(table.values()), abs=6e-5)


def test_students_quantiles_are_those_of_earlier_releases() -> None:
    degrees = [1, 2.7, 5, 11, 23.5, 159]  # computed by the continued fraction that scipy replaced
    earlier = [12.70620473617, 3.392148383174, 2.570581835636, 2.200985160092, 2.0662248608, 1.974996212767]
    assert student_quantile(0.975, degrees) == pytest.approx(earlier, rel=1e-9)


@given(st.floats(0.51, 1 - 1e-10))
def test_students_quantiles_with_one_and_two_degrees_are_the_known_formulas(p: float) -> None:
    q = 1.0 - p  # exact for p of a half and more
    cauchy, two = 1.0 / math.tan(math.pi * q), (1.0 - 2.0 * q) * math.sqrt(0.5 / (p * q))
    assert student_quantile(p, [1, 2]) == pytest.approx([cauchy, two], rel=1e-9)


@given(st.floats(0.51, 0.99999), st.floats(1.0, 500.0), st.floats(0.01, 50.0))
def test_fewer_degrees_reach_further_and_many_are_normal(p: float, df: float, more: float) -> None:
    few, many, normal = student_quantile(p, [df, df + more, 1e9])
    assert few > many > normal
    assert normal == pytest.approx(NormalDist().inv_cdf(p), rel=1e-3)


def test_the_quantile_of_a_half_is_zero() -> None:
    assert student_quantile(0.5, [1, 7, 300]).tolist() == [0.0, 0.0, 0.0]


# ---- Wilson's interval of a share ----


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_textbooks(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys_for_whole_numbers(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_the_share_and_mirrors_failures(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, 2 * n)) / 2  # a tie counts half
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    assert (1.0 - high, 1.0 - low) == pytest.approx(wilson_interval(n - successes, n))


# ---- the interval of a mean ----


@pytest.mark.parametrize(("values", "is_share"), [([0, 1, 0, 1], False), ([1, 1, 1], False), ([0, 0, 0], True)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_failures_and_successes_have_wilsons_interval(values: list[int], is_share: bool, scale: float) -> None:
    low, high = wilson_interval(sum(values), len(values))
    interval = mean_interval([value * scale for value in values], scale, is_share)
    assert interval == pytest.approx((low * scale, high * scale))


@pytest.mark.parametrize("value", [0.0, 1.7])
def test_a_text_quality_of_zero_everywhere_is_as_known_as_any_other_one(value: float) -> None:
    assert mean_interval([value] * 12, 100.0) == (value, value)


def test_shares_between_right_and_wrong_are_resampled() -> None:
    values = [0.0, 50.0, 100.0, 100.0] * 5
    interval = mean_interval(values, 100.0, is_share=True)
    assert interval == mean_interval(values, 100.0)
    assert interval != pytest.approx(tuple(100 * end for end in wilson_interval(12.5, 20)), abs=0.5)


def test_two_values_have_students_interval_by_hand() -> None:
    assert mean_interval([-1.0, 1.0]) == pytest.approx((-12.7062, 12.7062), abs=1e-3)  # sd sqrt(2), over sqrt(2)
    assert mean_interval([4.0, 6.0], 100.0) == pytest.approx((0.0, 17.7062), abs=1e-3)  # no less than the scale has


def test_the_mean_of_many_normal_values_has_students_interval() -> None:
    values = NORMAL_SCORES - NORMAL_SCORES.mean()
    half = 1.9720 * values.std(ddof=1) / math.sqrt(200)  # t(0.975, 199)
    assert mean_interval(values.tolist()) == pytest.approx((-half, half), rel=0.05)


def test_skewed_values_reach_further_up_than_down() -> None:
    values = [0.0] * 30 + [1.0] * 5 + [9.0, 17.0, 30.0]
    low, high = mean_interval(values, 100.0) or (math.nan, math.nan)
    middle = sum(values) / len(values)
    assert 0.0 < low < middle < high
    assert high - middle > 1.2 * (middle - low)


@pytest.mark.parametrize("values", [[], [3.0]])
def test_nothing_is_known_of_fewer_than_two(values: list[float]) -> None:
    assert mean_interval(values, 100.0) is None


@settings(max_examples=60)
@given(VALUES, st.randoms(use_true_random=False))
def test_any_values_have_an_interval_around_their_mean_whatever_their_order(
    values: list[float], random: Random
) -> None:
    interval = mean_interval(values, 1e7)
    shuffled = random.sample(values, len(values))
    assert interval is not None
    assert mean_interval(shuffled, 1e7) == interval
    assert interval[0] - 1e-6 <= sum(values) / len(values) <= interval[1] + 1e-6
    assert all(math.isfinite(end) for end in interval)
    if min(values) >= 0.0:
        assert interval[0] >= 0.0


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=25))
def test_an_interval_stays_on_the_scale_and_scales_with_it(values: list[float]) -> None:
    low, high = mean_interval(values) or (math.nan, math.nan)
    assert 0.0 <= low <= high <= 1.0
    assert mean_interval([100 * value for value in values], 100.0) == pytest.approx((100 * low, 100 * high), abs=1e-9)


def coverage(kind: str, n: int, times: int = 1_200) -> float:
    """In how many samples the interval holds the true mean."""
    generator = np.random.default_rng(11)
    samples, truth = {
        "normal": (generator.normal(5.0, 2.0, (times, n)), 5.0),
        "uniform": (generator.uniform(0.0, 1.0, (times, n)), 0.5),
        "skewed": (generator.gamma(2.0, 1.0, (times, n)), 2.0),  # skewness 1.4
        "discrete": (generator.binomial(5, 0.3, (times, n)) / 5.0, 0.3),
        "share": (generator.binomial(1, 0.3, (times, n)).astype(float), 0.3),
    }[kind]
    held = 0
    for sample in samples:
        low, high = mean_interval(sample.tolist()) or (math.nan, math.nan)
        held += low <= truth <= high
    return held / times


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("normal", 12),
        ("normal", 50),
        ("uniform", 12),
        ("skewed", 50),
        ("discrete", 12),
        ("discrete", 50),
        ("share", 50),
    ],
)
def test_95_percent_of_the_intervals_hold_the_truth(kind: str, n: int) -> None:
    assert 0.93 <= coverage(kind, n) <= 0.97  # 1,200 samples: two standard errors are 0.013


# ---- draws ----


def test_draws_are_shares_of_prompts_and_the_same_each_time() -> None:
    shares = draw_shares(7, 300)
    assert shares.shape == (300, 7)
    assert shares.sum(axis=1) == pytest.approx(np.ones(300))
    assert set((shares * 7).round(9).ravel()) <= set(map(float, range(8)))
    assert not shares.flags.writeable
    before = shares.copy()
    draw_shares.cache_clear()
    assert (draw_shares(7, 300) == before).all()


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60), st.floats(0.0, 0.49))
def test_the_outer_quantiles_are_numpys(values: list[float], tail: float) -> None:
    data = np.array(values)
    assert outer_quantiles(data, tail) == pytest.approx(tuple(np.quantile(data, (tail, 1.0 - tail))), abs=1e-9)


def test_more_draws_change_an_interval_little() -> None:
    values = NORMAL_SCORES[:50]
    assert bootstrap_interval(values, 2_000) == pytest.approx(bootstrap_interval(values, 40_000), abs=0.03)
