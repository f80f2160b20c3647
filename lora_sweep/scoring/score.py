"""The metrics of generated texts: for each prompt, their means, and the means of the references for comparison.

The same rows give the same numbers, in any order. Reads no file and knows no model and no trial. A number that cannot
be computed is None, never NaN. A scorer (see ``scorers``) is a function that replaces ``quality`` and adds further
metrics; the other metrics stay.

Without a scorer, ``quality`` is **the F1 of ROUGE-L against the reference, where each 4-gram that the text repeats
(more often than the reference does) counts as four more words, and half of that when the text did not end by
itself**:

    quality = rouge_l * size / (size + 4 * repeats) * (1 if finished else 0.5),   size = words + reference's words

A text equal to its reference has 100, an empty one 0. More words that are not in the reference can only lower it:
they add to ``size``, while the matches of the F1 stay the same. And they do not dilute the repeats, which are a count
and not a share.

Two other formulas were measured on 48 catalogue prompts, with SmolLM2-135M with and without an adapter.

* rouge_l * (1 - repetition_4gram): 20 made-up words, added to the long texts of the baseline, raised it for 39 of 48
  prompts. They raised the formula above for none.
* chrF (beta 1) combined with ROUGE-L: 40 words of an unrelated record, added to the first sentence of a tuned text,
  raised it for 35 of 48 prompts, by 2.0 points on average, because any two English texts share letters. The formula
  above fell by 1.8 points on average; it rose for 18 prompts, because of common words.
"""

import math
import statistics
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, TypedDict

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from lora_sweep.runs.records import Generation
from lora_sweep.scoring.metrics import METRICS
from lora_sweep.scoring.scorers import MetricValues, Scorer

# Of longer texts only the beginnings are compared. The table of ROUGE-L grows with the product of the two lengths (a
# million cells take 0.2 s), the work of chrF with the characters. Evaluations write far shorter texts.
COMPARED_WORDS = 1_000
COMPARED_CHARACTERS = 20_000

# Scripts without spaces between words, by the first words of Unicode's names: each of their characters is a word.
UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")

CHRF_SCORER = CHRF()  # beta 2, character 1- to 6-grams, no words, case kept, white space ignored
ROUGE_SCORER = RougeScorer(
    ["rougeL"], tokenizer=SimpleNamespace(tokenize=lambda text: split_words(text)[:COMPARED_WORDS])
)


class Scores(TypedDict):
    """The content of scores.json. Each dict has every name of METRICS, and each further name that the scorer gives."""

    prompts: list[dict[str, Any]]  # one for each prompt: its prompt_id, and its metrics, each a number or None
    means: MetricValues  # over the prompts that have the metric; None where none has it
    references: MetricValues  # means of the references, scored as texts


def score_generations(generations: Sequence[Generation], scorer: Scorer | None = None) -> Scores:
    """The metrics of the rows of generations.jsonl.

    Args:
        generations: rows with ``prompt_id``, ``text``, ``finished`` and, where known, ``product``, ``reference`` and
            ``response_nll``. A reference without a word counts as no reference, except for ``scorer``.
        scorer: gives quality and further metrics; None for the formula of this module.

    Returns:
        The scores. Prompts are in the order of ``generations``.

    Raises:
        RuntimeError: a user's function fails on a text or on a reference.
    """
    references: list[Generation] = [
        {**row, "text": reference, "finished": True, "response_nll": None}
        for row in generations
        if (reference := row.get("reference")) and (scorer or split_words(reference))
    ]
    scored = [score_generation(row, scorer) for row in generations]
    scored_references = [score_generation(row, scorer) for row in references]
    added = sorted({name for values in scored for name in values} - set(METRICS))
    names = [*METRICS, *added]
    prompts = [
        {"prompt_id": row["prompt_id"], **{name: values.get(name) for name in names}}
        for row, values in zip(generations, scored, strict=True)
    ]
    return {
        "prompts": prompts,
        "means": average_metrics(scored, names),
        "references": average_metrics(scored_references, names),
    }


def score_generation(row: Generation, scorer: Scorer | None = None) -> MetricValues:
    """Every metric of one generation, in METRICS' order; without a reference, those that need one are None."""
    text, reference, is_finished = row["text"], row.get("reference") or "", bool(row["finished"])
    words, reference_words = split_words(text), split_words(reference)
    values: MetricValues = dict.fromkeys(METRICS)
    values["repetition_4gram"] = count_repeats(words) / max(len(words) - 3, 1)
    values["distinct_2"] = len(set(list_ngrams(words, 2))) / (len(words) - 1) if len(words) > 1 else None
    values["finished"] = float(is_finished)
    values["product_named"] = names_product(row.get("product") or "", words)
    values["words"] = len(words)
    if reference_words:
        values["chrf"] = compute_chrf(text, reference)
        values["rouge_l"] = rouge = compute_rouge_l(text, reference)
        compared, compared_reference = words[:COMPARED_WORDS], reference_words[:COMPARED_WORDS]
        values["quality"] = compute_quality(rouge, compared, compared_reference, is_finished)
        values["length_ratio"] = len(words) / len(reference_words)
        values["response_nll"] = finite_or_none(row.get("response_nll"))
    return values if scorer is None else {**values, **scorer(row)}


def compute_quality(rouge: float, words: list[str], reference_words: list[str], is_finished: bool) -> float:
    """The formula of this module, 0-100.

    Args:
        rouge: F1 of ROUGE-L, 0-100, of ``words`` against ``reference_words``, which must not be empty.
    """
    extra_repeats = max(0, count_repeats(words) - count_repeats(reference_words))
    size = len(words) + len(reference_words)
    return rouge * size / (size + 4 * extra_repeats) * (1.0 if is_finished else 0.5)


def compute_rouge_l(text: str, reference: str) -> float:
    """The F1 of ROUGE-L, 0-100, over the first COMPARED_WORDS words of each text.

    On plain English it equals the number of the package rouge-score.
    """
    return 100.0 * float(ROUGE_SCORER.score(reference, text)["rougeL"].fmeasure)


def compute_chrf(text: str, reference: str) -> float:
    """Sentence chrF2, 0-100, over the first COMPARED_CHARACTERS characters of each text."""
    return float(CHRF_SCORER.sentence_score(text[:COMPARED_CHARACTERS], [reference[:COMPARED_CHARACTERS]]).score)


def names_product(product: str, words: list[str]) -> float | None:
    """1.0 if ``words`` contain the product's name as whole words, else 0.0; None where there is no name.

    Whole words, because catalogues have names like TRY, and 285 of 3,383 descriptions have a "country".
    """
    name = split_words(product)
    return float(f" {' '.join(name)} " in f" {' '.join(words)} ") if name else None


def split_words(text: str) -> list[str]:
    """The casefolded words of a text: runs of letters, digits, marks and pictures.

    In scripts without spaces (UNSPACED_SCRIPTS) each character is a word. On ASCII these are the tokens of rouge-score
    without a stemmer, whose own tokenizer drops all other letters: a Chinese text would score 0 against itself.
    """
    return "".join(map(space_character, text.casefold())).split()


@lru_cache(maxsize=10_000)
def space_character(character: str) -> str:
    """The character, if it is part of a word; with spaces around it, if it is a word; a space otherwise."""
    category = unicodedata.category(character)
    if category[0] not in "LMN" and category != "So":
        return " "
    return f" {character} " if unicodedata.name(character, "").startswith(UNSPACED_SCRIPTS) else character


def list_ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    """All sequences of ``n`` adjacent tokens, in order; [] when there are fewer tokens."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def count_repeats(tokens: list[str]) -> int:
    """How many 4-grams of ``tokens`` occur earlier in them."""
    ngrams = list_ngrams(tokens, 4)
    return len(ngrams) - len(set(ngrams))


def average_metrics(rows: list[MetricValues], names: list[str]) -> MetricValues:
    """The mean of each metric over the rows that have it. It is exact: the order of the rows changes no digit."""
    columns = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
    return {name: float(statistics.mean(values)) if values else None for name, values in columns.items()}


def finite_or_none(value: float | None) -> float | None:
    """The number itself, or None where it is missing, infinite or NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
