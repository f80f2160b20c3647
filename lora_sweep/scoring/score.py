"""Generations -> metrics: per prompt, their means, and the same for the references, which gives the numbers a scale.

Pure: the same rows give the same numbers, in any order. Knows no file, no model and no trial. A number that is
not known is None; nothing here returns a NaN. Another scorer than the text's own (``scorers``) comes in as a function,
replaces ``quality`` and adds numbers; the others stay.

``quality`` in one line: **ROUGE-L F1 against the reference, in which every 4-gram that the text repeats (beyond the
reference's own repeats) counts as four more words, halved when the text did not end by itself**:

    quality = rouge_l * size / (size + 4 * repeats) * (1 if finished else 0.5),   size = words + reference's words

A text equal to its reference has 100, an empty one 0. Words appended that are not in the reference can only lower
it: they add to ``size`` of an F1 whose matches stay, and cannot dilute the repeats, which are a count and no share.
Why neither chrF nor the share of repeats is in it (measured: 48 catalogue prompts, SmolLM2-135M with and without an
adapter): 20 made-up words appended to the baseline's rambling texts raised rouge_l * (1 - repetition_4gram) in 39 of
48, and this formula in none; 40 words of an unrelated record appended to a tuned text's first sentence raised a
formula with chrF (beta 1) beside ROUGE-L in 35 of 48, by 2.0 points on average, since any two English texts share
letters. Here they lowered it by 1.8 on average; common words let it rise in 18.
"""

import math
import statistics
import unicodedata
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from lora_sweep.scoring.metrics import METRICS
from lora_sweep.scoring.scorers import Scorer

# Longer texts are compared by their beginnings: ROUGE-L's table grows with the product of the lengths (a million
# cells take 0.2 s), chrF with characters. Both lie far beyond what an evaluation writes.
COMPARED_WORDS = 1_000
COMPARED_CHARACTERS = 20_000

# Scripts that put no space between words: there each character is a word (the first words of Unicode's names).
UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")

CHRF_SCORER = CHRF()  # beta 2, characters 1 to 6, no words, case kept, no space
ROUGE_SCORER = RougeScorer(
    ["rougeL"], tokenizer=SimpleNamespace(tokenize=lambda text: split_words(text)[:COMPARED_WORDS])
)


def score_generations(generations: list[dict[str, Any]], scorer: Scorer | None = None) -> dict[str, Any]:
    """The metrics of generations.jsonl's rows.

    Args:
        generations: rows with ``prompt_id``, ``text``, ``finished`` and, where known, ``product``, ``reference`` and
            ``response_nll``. To the text's own metrics a reference without a word in it counts as none.
        scorer: says what quality is, and more; None: the module's formula.

    Returns:
        ``{"prompts": [{"prompt_id", <metric>: number or None}], "means": {<metric>: ...}, "references": {...}}``:
        prompts in the order given; a mean is over the prompts that have the metric, None where none has;
        ``references`` are the means of the references scored as texts. Every name of METRICS is in each, and of the
        scorer's those that any prompt has.

    Raises:
        RuntimeError: a function of one's own fails on a text, or on a reference as one.
    """
    as_texts = [
        {**row, "text": row["reference"], "finished": True, "response_nll": None}
        for row in generations
        if split_words(row.get("reference") or "") or (scorer and row.get("reference"))
    ]
    scored, ideal = ([score_generation(row, scorer) for row in rows] for rows in (generations, as_texts))
    more = sorted({name for values in scored for name in values} - set(METRICS))
    names = [*METRICS, *more]
    prompts = [
        {"prompt_id": row["prompt_id"], **{name: values.get(name) for name in names}}
        for row, values in zip(generations, scored, strict=True)
    ]
    return {"prompts": prompts, "means": average_metrics(scored, names), "references": average_metrics(ideal, names)}


def score_generation(row: dict[str, Any], scorer: Scorer | None = None) -> dict[str, float | None]:
    """Every metric of one generation, in METRICS' order; those that need a reference are None without one."""
    text, finished = row["text"], bool(row["finished"])
    said, meant = split_words(text), split_words(row.get("reference") or "")
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    values["repetition_4gram"] = count_repeats(said) / max(len(said) - 3, 1)
    values["distinct_2"] = len(set(list_ngrams(said, 2))) / (len(said) - 1) if len(said) > 1 else None
    values["finished"] = float(finished)
    values["product_named"] = names_product(row.get("product") or "", said)
    values["words"] = len(said)
    if meant:
        values["chrf"] = compute_chrf(text, row["reference"])
        values["rouge_l"] = rouge = compute_rouge_l(text, row["reference"])
        values["quality"] = compute_quality(rouge, said[:COMPARED_WORDS], meant[:COMPARED_WORDS], finished)
        values["length_ratio"] = len(said) / len(meant)
        values["response_nll"] = finite_or_none(row.get("response_nll"))
    return values if scorer is None else {**values, **scorer(row)}


def compute_quality(rouge: float, said: list[str], meant: list[str], finished: bool) -> float:
    """The module's formula, 0-100. ``rouge`` is ROUGE-L F1 (0-100) of ``said`` against ``meant``, not empty."""
    extra = max(0, count_repeats(said) - count_repeats(meant))
    size = len(said) + len(meant)
    return rouge * size / (size + 4 * extra) * (1.0 if finished else 0.5)


def compute_rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1, 0-100, over the first COMPARED_WORDS words of each; rouge-score's own number on plain English."""
    return 100.0 * float(ROUGE_SCORER.score(reference, text)["rougeL"].fmeasure)


def compute_chrf(text: str, reference: str) -> float:
    """Sentence chrF2, 0-100, over the first COMPARED_CHARACTERS characters of each."""
    return float(CHRF_SCORER.sentence_score(text[:COMPARED_CHARACTERS], [reference[:COMPARED_CHARACTERS]]).score)


def names_product(product: str, said: list[str]) -> float | None:
    """1.0 if the product's name stands in the text as whole words, else 0.0; None without a name.

    Whole words, because catalogues have names such as TRY, which 285 of 3,383 descriptions hold inside "country".
    """
    name = split_words(product)
    return float(f" {' '.join(name)} " in f" {' '.join(said)} ") if name else None


def split_words(text: str) -> list[str]:
    """The words of a text, casefolded: runs of letters, digits, marks and pictures; in UNSPACED, each character.

    On ASCII these are rouge-score's tokens without a stemmer. Its own tokenizer drops every other letter, so that
    a Chinese text equal to its reference would score 0.
    """
    return "".join(map(space_character, text.casefold())).split()


@lru_cache(maxsize=10_000)
def space_character(character: str) -> str:
    """A character as it stands between words: itself, itself with spaces around, or a space."""
    category = unicodedata.category(character)
    if category[0] not in "LMN" and category != "So":
        return " "
    return f" {character} " if unicodedata.name(character, "").startswith(UNSPACED_SCRIPTS) else character


def list_ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` tokens, in order; [] when there are fewer tokens."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def count_repeats(tokens: list[str]) -> int:
    """How many 4-grams of the tokens stood there before."""
    grams = list_ngrams(tokens, 4)
    return len(grams) - len(set(grams))


def average_metrics(rows: list[dict[str, float | None]], names: list[str]) -> dict[str, float | None]:
    """The mean of each metric over the rows that have it; exact, so that their order changes no digit."""
    columns = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
    return {name: float(statistics.mean(values)) if values else None for name, values in columns.items()}


def finite_or_none(value: float | None) -> float | None:
    """The number, or None for a missing, infinite or undefined one."""
    return float(value) if value is not None and math.isfinite(value) else None
