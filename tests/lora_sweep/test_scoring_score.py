"""score: each metric by hand, what quality must and must not reward, and texts that no model should write."""

import json
import math
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lora_sweep.scoring.metrics import METRICS
from lora_sweep.scoring.score import (
    COMPARED_CHARACTERS,
    COMPARED_WORDS,
    compute_rouge_l,
    count_repeats,
    list_ngrams,
    score_generation,
    score_generations,
    split_words,
)

# A real record of the catalogue; SmolLM2-135M before and after 24 steps of LoRA on such records.
REFERENCE = (
    "GoMapMan is an open web-accessible resource for gene functional annotations in the plant sciences. It was "
    "developed to facilitate improvement, consolidation and visualization of gene annotations across several "
    "plant species."
)
BASELINE = (
    "The GoMapMan is a plant genetic map that helps in the genetic mapping of plant species. "
    + "It is a genetic map that helps in the genetic mapping of plant species. " * 3
    + "It is a genetic map"
)
TUNED = (
    "GoMapMan is a tool for the analysis of plant genetic resources. It provides a comprehensive database of plant "
    "genetic resources."
)
LOOP = (
    "GoMapMan is a comprehensive tool for plant genetic resources, including plant species, "
    + "plant taxonomy, " * 12
    + "plant taxonomy"
)
GENERIC = (
    "GoMapMan is a database that provides access to data for the research community. It is developed to facilitate the "
    "sharing and use of data in the field of plant genetics."
)

# The bounds that METRICS states. A response's loss and a length have no upper one.
BOUNDS = {
    "quality": 100.0,
    "chrf": 100.0,
    "rouge_l": 100.0,
    "repetition_4gram": 1.0,
    "distinct_2": 1.0,
    "finished": 1.0,
    "length_ratio": math.inf,
    "product_named": 1.0,
    "response_nll": math.inf,
    "words": math.inf,
}


def generation(text: str, reference: str | None = REFERENCE, finished: bool = True, **more: Any) -> dict[str, Any]:
    return {"prompt_id": "validation-0", "text": text, "reference": reference, "finished": finished, **more}


def metric(name: str, text: str, reference: str | None = REFERENCE, finished: bool = True, **more: Any) -> float | None:
    return score_generation(generation(text, reference, finished, **more))[name]


def quality(text: str, reference: str = REFERENCE, finished: bool = True) -> float:
    value = metric("quality", text, reference, finished)
    assert value is not None
    return value


# Each metric by hand.


def test_chrf_is_sacrebleu_s_chrf2() -> None:
    # "ab" against "abc": one character: precision 2/2, recall 2/3; two: 1/1, 1/2; longer ones the text has none of.
    # Means 1 and 7/12; F with beta 2: 5 * 1 * 7/12 / (4 * 1 + 7/12) = 7/11.
    assert metric("chrf", "ab", "abc") == pytest.approx(100 * 7 / 11)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "the cat sat" is all in order in a reference of six words: precision 1, recall 1/2.
    assert metric("rouge_l", "The cat sat.", "the cat on the mat sat") == pytest.approx(100 * 2 / 3)


def test_repetition_is_the_share_of_4grams_that_stood_there_before() -> None:
    assert metric("repetition_4gram", "a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert metric("repetition_4gram", "A b, c d. a b c D") == pytest.approx(1 / 5)
    assert metric("repetition_4gram", "a b c d") == 0.0
    assert metric("repetition_4gram", "a a a") == 0.0  # no 4-gram at all


def test_distinct_2_is_the_share_of_distinct_bigrams() -> None:
    assert metric("distinct_2", "a b a b") == pytest.approx(2 / 3)  # ab ba ab
    assert metric("distinct_2", "a b") == 1.0
    assert metric("distinct_2", "a") is None


def test_finished_words_and_length_ratio() -> None:
    assert metric("finished", "a", finished=True) == 1.0
    assert metric("finished", "a", finished=False) == 0.0
    assert metric("words", "One, two - three!") == 3
    assert metric("length_ratio", "One, two - three!", "a b c d e f") == 0.5


@pytest.mark.parametrize(
    ("product", "text", "named"),
    [
        ("Optical  Mouse", "The OPTICAL\nmouse glides.", 1.0),
        ("Optical Mouse", "An optical instrument, and a mouse.", 0.0),
        ("TRY", "Data of each country.", 0.0),
        ("TRY", "TRY: plant traits", 1.0),
        ("Straße", "die STRASSE", 1.0),
        ("数据库", "这是数据库。", 1.0),
        ("", "anything", None),
        (None, "anything", None),
    ],
)
def test_product_named_looks_for_whole_words(product: str | None, text: str, named: float | None) -> None:
    assert metric("product_named", text, product=product) == named


def test_response_nll_is_carried_over_when_it_is_a_number_and_there_is_a_reference() -> None:
    assert metric("response_nll", "a", response_nll=2.5) == 2.5
    assert metric("response_nll", "a", response_nll=None) is None
    assert metric("response_nll", "a") is None
    assert metric("response_nll", "a", response_nll=math.nan) is None
    assert metric("response_nll", "a", response_nll=math.inf) is None
    assert metric("response_nll", "a", reference=None, response_nll=2.5) is None


def test_quality_by_hand() -> None:
    # ROUGE-L: 4 of 8 + 4 words match: 2 * 4 / 12. One repeated 4-gram counts as four more words: 2 * 4 / 16.
    assert quality("a b c d a b c d", "a b c d") == pytest.approx(50.0)
    assert quality("a b c d a b c d", "a b c d", finished=False) == pytest.approx(25.0)
    assert quality("a b x", "a b c") == pytest.approx(100 * 2 / 3)
    assert quality("x y z", "a b c") == 0.0
    assert quality("", "a b c") == 0.0


@pytest.mark.parametrize("reference", [REFERENCE, "a b c d a b c d a b c d", "这是一个资源", "नमस्ते दुनिया", "🎉", "1"])
def test_a_text_equal_to_its_reference_has_full_marks(reference: str) -> None:
    assert quality(reference, reference) == pytest.approx(100.0)
    assert metric("chrf", reference, reference) == pytest.approx(100.0)


def test_without_a_reference_only_the_text_s_own_metrics_are_known() -> None:
    own = {"repetition_4gram", "distinct_2", "finished", "product_named", "words"}
    for nothing in (None, "", " \n", "...!"):
        values = score_generation(generation(TUNED, nothing, product="GoMapMan", response_nll=1.0))
        assert {name for name, value in values.items() if value is not None} == own
        assert set(score_generations([generation(TUNED, nothing)])["references"].values()) == {None}


# What quality rewards.


def test_a_short_finished_text_is_far_better_than_a_rambling_one_cut_off() -> None:
    assert quality(TUNED) > 4 * quality(BASELINE, finished=False)
    assert quality(TUNED) > 2 * quality(BASELINE, finished=True)  # not for its end alone
    assert quality(TUNED) > 4 * quality(LOOP, finished=False)
    chrf_tuned, chrf_baseline = metric("chrf", TUNED), metric("chrf", BASELINE)
    assert chrf_tuned is not None
    assert chrf_baseline is not None
    assert chrf_tuned < chrf_baseline  # the trap: chrF alone would have chosen the baseline


@pytest.mark.parametrize("text", [REFERENCE, BASELINE, TUNED, LOOP, GENERIC])
def test_finishing_doubles_quality(text: str) -> None:
    assert quality(text, finished=True) == pytest.approx(2 * quality(text, finished=False))


@pytest.mark.parametrize("text", [REFERENCE, BASELINE, TUNED, LOOP, GENERIC])
@pytest.mark.parametrize("times", [1, 3])
def test_saying_it_again_lowers_quality(text: str, times: int) -> None:
    first = text.split(". ")[0] + "."
    assert quality(f"{text} {' '.join([first] * times)}") < quality(text)
    assert quality(" ".join([first] * (times + 1))) < quality(first)


@pytest.mark.parametrize("text", [REFERENCE, BASELINE, TUNED, LOOP, GENERIC])
@pytest.mark.parametrize("count", [1, 20, 60, 500])
def test_unrelated_words_lower_quality_even_where_they_dilute_the_repeats(text: str, count: int) -> None:
    unrelated = " ".join(f"zq{number}" for number in range(count))
    assert quality(f"{text} {unrelated}") < quality(text)
    assert quality(f"{unrelated} {text}") < quality(text)


LETTERS = st.lists(st.sampled_from("abcdef"), max_size=30).map(" ".join)


@settings(deadline=None, max_examples=50)
@given(text=LETTERS, reference=LETTERS.filter(bool), unrelated=st.lists(st.sampled_from("uvwxyz"), max_size=30))
def test_words_that_the_reference_has_not_never_raise_quality(text: str, reference: str, unrelated: list[str]) -> None:
    assert quality(" ".join([text, *unrelated]), reference) <= quality(text, reference) + 1e-9


def test_a_text_that_is_unlike_the_reference_scores_less() -> None:
    other = "The archive holds images of brain tissue, with cells and synapses."
    assert quality(other) < quality(TUNED) < quality(REFERENCE)


# The whole value.


def test_prompts_keep_their_order_and_means_are_over_those_that_have_the_metric() -> None:
    rows = [
        {**generation("a b c", "a b c", response_nll=3.0, product="b"), "prompt_id": "validation-0"},
        {**generation("x", "a b c", finished=False, response_nll=1.0), "prompt_id": "validation-1"},
        {**generation("a b a b", None, product="z"), "prompt_id": "fixed-0"},
    ]
    scores = score_generations(rows)
    assert [prompt["prompt_id"] for prompt in scores["prompts"]] == ["validation-0", "validation-1", "fixed-0"]
    assert scores["prompts"][0]["quality"] == pytest.approx(100.0)
    assert scores["prompts"][2]["quality"] is None
    means = scores["means"]
    assert means["quality"] == pytest.approx(50.0)  # of two
    assert means["response_nll"] == pytest.approx(2.0)
    assert means["finished"] == pytest.approx(2 / 3)  # of three
    assert means["distinct_2"] == pytest.approx((1 + 2 / 3) / 2)  # one word has no bigram
    assert means["product_named"] == pytest.approx(0.5)
    assert means["words"] == pytest.approx(8 / 3)


def test_references_are_scored_as_texts() -> None:
    rows = [
        generation("x", "a b c d a b c d", finished=False, product="C", response_nll=9.0),
        generation("x", "a b", finished=False, product="C"),
        generation("x", None, product="x"),
    ]
    references = score_generations(rows)["references"]
    assert references["quality"] == pytest.approx(100.0)
    assert references["chrf"] == pytest.approx(100.0)
    assert references["repetition_4gram"] == pytest.approx(1 / 10)
    assert references["finished"] == 1.0
    assert references["product_named"] == pytest.approx(0.5)
    assert references["length_ratio"] == 1.0
    assert references["response_nll"] is None
    assert references["words"] == 5.0


@pytest.mark.parametrize("rows", [[], [generation("a", None)], [generation("", REFERENCE)]])
def test_every_metric_is_always_there_in_the_order_of_display(rows: list[dict[str, Any]]) -> None:
    scores = score_generations(rows)
    assert list(scores["means"]) == list(scores["references"]) == list(METRICS) == list(BOUNDS)
    for prompt in scores["prompts"]:
        assert list(prompt) == ["prompt_id", *METRICS]


def test_nothing_generated_means_nothing_known() -> None:
    scores = score_generations([])
    assert scores["prompts"] == []
    assert set(scores["means"].values()) == set(scores["references"].values()) == {None}


def test_metrics_say_what_they_are_and_which_way_is_better() -> None:
    assert next(iter(METRICS)) == "quality"
    assert {name for name, (_, better) in METRICS.items() if better is False} == {"repetition_4gram", "response_nll"}
    assert {name for name, (_, better) in METRICS.items() if better is None} == {"length_ratio", "words"}
    assert all(text for text, _ in METRICS.values())


def test_score_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, lora_sweep.scoring.score; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Any text.

TEXTS = st.one_of(st.text(max_size=80), LETTERS)
ROWS = st.builds(
    generation,
    text=TEXTS,
    reference=st.none() | TEXTS,
    finished=st.booleans(),
    product=st.none() | st.text(max_size=5),
    response_nll=st.none() | st.floats(min_value=0),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(ROWS, max_size=4))
@example([generation("a b c d", "a b c d", response_nll=math.nan)])
def test_every_number_is_finite_and_in_its_bounds(rows: list[dict[str, Any]]) -> None:
    scores = score_generations(rows)
    json.dumps(scores, allow_nan=False)
    for row in [*scores["prompts"], scores["means"], scores["references"]]:
        for name, bound in BOUNDS.items():
            assert row[name] is None or 0.0 <= row[name] <= bound, name


@settings(deadline=None, max_examples=50)
@given(st.lists(ROWS, max_size=4).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_generations_changes_no_mean(both: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    one, other = score_generations(both[0]), score_generations(both[1])
    assert (one["means"], one["references"]) == (other["means"], other["references"])  # to the last digit


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.characters(max_codepoint=127)), st.text(alphabet=st.characters(max_codepoint=127)))
@example(BASELINE, REFERENCE)
def test_rouge_l_is_rouge_score_s_own_on_ascii(text: str, reference: str) -> None:
    standard = RougeScorer(["rougeL"], use_stemmer=False).score(reference, text)["rougeL"].fmeasure
    assert compute_rouge_l(text, reference) == pytest.approx(100 * standard)


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    assert split_words("数据库 ABC。") == ["数", "据", "库", "abc"]
    assert split_words("café नमस्ते, 🎉-x_y") == ["café", "नमस्ते", "🎉", "x", "y"]
    assert metric("repetition_4gram", "植物基因植物基因") == pytest.approx(1 / 5)
    assert list_ngrams(["a"], 2) == []
    assert count_repeats([]) == 0


HOSTILE = {
    "one word": "x" * 100_000,
    "many words": "ab " * 33_000,
    "distinct words": " ".join(str(number) for number in range(20_000)),
    "no spaces": "这是一个植物基因注释资源。" * 8_000,
    "emoji": "🎉 👩‍🔬 " * 20_000,
    "control characters": "\x00\x01\x1b[31m\x7f\u202e" * 20_000,
    "lone surrogates": "\ud800" * 1_000,
    "only whitespace": " \t\n\u3000" * 25_000,
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_get_numbers_and_take_no_time(name: str) -> None:
    start = time.process_time()
    rows = [generation(HOSTILE[name], REFERENCE), generation(TUNED, HOSTILE[name]), generation(HOSTILE[name], None)]
    rows.append(generation(HOSTILE[name], HOSTILE[name], product=HOSTILE[name]))
    json.dumps(score_generations(rows), allow_nan=False)
    assert time.process_time() - start < 6.0  # about 1 s; uncapped, the longest takes minutes and gigabytes


def test_what_comes_after_the_compared_beginnings_changes_no_comparison() -> None:
    start = " ".join(f"w{number}" for number in range(COMPARED_WORDS))
    assert quality(f"{start} and more", start) == pytest.approx(100.0)
    assert quality(f"and more {start}", start) < 100.0
    letters = "x" * COMPARED_CHARACTERS
    assert metric("chrf", letters + "yz", letters) == pytest.approx(100.0)
    assert metric("chrf", "yz" + letters, letters) != pytest.approx(100.0)
