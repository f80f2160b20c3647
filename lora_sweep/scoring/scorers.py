"""What ``quality`` is where it is not the text's own: a comparison with the reference, or a function of one's own.

Owns the scorers' names, the checks of their settings, and the numbers that they add to a generation's; ``score`` owns
those of every text. Planning names a function of one's own by its module's source and never imports it: ``inspect``
does, in a process of its own, and tries it; then the trial. Imports no torch.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NoReturn

from lora_sweep.config.schema import Eval
from lora_sweep.config.user_functions import entry_point, in_words, installed, load_function
from lora_sweep.errors import Refused

# The built-in scorers, and of which of its numbers quality is 100 times; of a text that is the formula of ``score``.
MAIN_METRICS: dict[str, str | None] = {
    "text": None,
    "exact_match": "exact_match",
    "label": "label_correct",
    "json": "json_values",
    "regex": "regex_match",
}
USER_METRIC_PREFIX = "score_"  # before what else such a function gives: no name of its can then be another column's
MAX_JSON_DEPTH = 100  # levels of JSON: what is nested deeper counts as none, and takes no stack and no memory
REFERENCE_FAULTS = {"label": "are not among eval.labels", "json": "are no JSON", "regex": "do not hold eval.pattern"}

MetricValues = dict[str, float | None]  # by the metric's name; quality is 0-100, a built-in scorer's others are 0-1
Scorer = Callable[[dict[str, Any]], MetricValues]  # of a row of generations.jsonl


def make_scorer(settings: Eval, references: Sequence[str]) -> Scorer | None:
    """The scorer that ``settings`` names; None for ``text``.

    Args:
        references: of the prompts that are scored: without ``eval.labels`` they are the labels.

    Raises:
        Refused: a function of one's own cannot be loaded.
    """
    name = settings.scorer
    if name not in MAIN_METRICS:
        return functools.partial(score_by_user_function, name=name, function=load_function(name))
    compare: dict[str, Callable[[str, str | None], MetricValues]] = {
        "exact_match": score_exact_match,
        "label": functools.partial(
            score_label, labels={normalize_label(each) for each in settings.labels or references}
        ),
        "json": score_json,
        "regex": functools.partial(score_regex, pattern=re.compile(settings.pattern or "")),
    }
    main = MAIN_METRICS[name]
    return None if main is None else functools.partial(score_against_reference, compare=compare[name], main=main)


def score_against_reference(
    row: dict[str, Any], compare: Callable[[str, str | None], MetricValues], main: str
) -> MetricValues:
    """The numbers of a built-in scorer, quality first; those that need a reference are None without one."""
    numbers = compare(row["text"], row.get("reference"))
    value = numbers[main]
    return {"quality": None if value is None else 100.0 * value, **numbers}


# --- settings --------------------------------------------------------------------------------------------------------


def check_scorer(settings: Eval) -> None:
    """Refuse a name and settings that cannot be right. A function of one's own is not looked at.

    Raises:
        Refused: an unknown scorer, a setting that the scorer does not read, a pattern that is no regular expression.
    """
    name, pattern, labels = settings.scorer, settings.pattern, settings.labels
    if name not in MAIN_METRICS and entry_point(name) is None:
        what = "is unknown (a function of your own is written module:function)"
        raise Refused(f"eval.scorer = {name}", what, (*MAIN_METRICS, *installed()), name)
    if name == "regex" and not pattern:
        raise Refused("eval.scorer = regex", "needs eval.pattern")
    for key, reader in (("pattern", "regex"), ("labels", "label")):
        if getattr(settings, key) and name != reader:
            raise Refused(f"eval.{key}", f"is read by eval.scorer={reader} alone, and the scorer is {name}")
    try:
        re.compile(pattern or "")
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(f"eval.pattern = {pattern}", f"is no regular expression ({error})") from None
    plain = [normalize_label(each) for each in labels]
    for place, each in enumerate(plain):
        if not each or each in plain[:place]:
            what = "spells a label that is there already" if each else "holds no character that counts"
            raise Refused(f"eval.labels: {labels[place]!r}", what)


def check_references(settings: Eval, asked: Sequence[dict[str, Any]]) -> None:
    """Refuse what the scorer can make nothing of: as a text, each reference must have full marks by it.

    A function of one's own is tried on a reference, on an empty text and on a prompt without a reference.

    Args:
        asked: rows of generations.jsonl, before a text is written.

    Raises:
        Refused: references of another kind; a function that cannot be loaded, or that fails.
    """
    named = [row for row in asked if row["reference"] is not None]
    scorer = make_scorer(settings, [row["reference"] for row in named])
    if scorer is None:
        return
    if settings.scorer in MAIN_METRICS:
        wrong = [row["reference"] for row in named if not has_full_marks(scorer({**row, "text": row["reference"]}))]
        if wrong:
            what = (
                f"{len(wrong)} of {len(named)} references {REFERENCE_FAULTS[settings.scorer]}, first {wrong[0][:60]!r}"
            )
            raise Refused(f"eval.scorer = {settings.scorer}", what)
        return
    for row in [*named[:1], *[row for row in asked if row["reference"] is None][:1]]:
        for text in (row["reference"] or "", ""):
            try:
                scorer({**row, "text": text})
            except RuntimeError as error:
                raise Refused("", str(error)) from error


def has_full_marks(numbers: MetricValues) -> bool:
    return all(value == 1.0 for name, value in numbers.items() if name != "quality")


# --- built-in scorers: a text against its reference ------------------------------------------------------------------


def score_exact_match(text: str, reference: str | None) -> MetricValues:
    """Equal, but for where the white space is."""
    return {"exact_match": None if reference is None else float(text.split() == reference.split())}


def score_label(text: str, reference: str | None, labels: set[str]) -> MetricValues:
    """The text is one label, and the reference's."""
    said = normalize_label(text)
    correct = None if reference is None else float(said == normalize_label(reference))
    return {"label_correct": correct, "label_known": float(said in labels)}


def normalize_label(text: str) -> str:
    """A label as it is compared: ``Positive.`` is ``positive``, and C is not C++."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`")


def score_regex(text: str, reference: str | None, pattern: re.Pattern[str]) -> MetricValues:
    """What the pattern finds first in the text is what it finds first in the reference."""
    said, meant = find_pattern(pattern, text), None if reference is None else find_pattern(pattern, reference)
    match = None if meant is None else float(said == meant)
    return {"regex_match": match, "regex_found": float(said is not None)}


def find_pattern(pattern: re.Pattern[str], text: str) -> str | None:
    """The pattern's first group where it has one that took part, else all that it matches; None for no match."""
    match = pattern.search(text)
    if match is None:
        return None
    return match[1] if pattern.groups and match[1] is not None else match[0]


def score_json(text: str, reference: str | None) -> MetricValues:
    """The text is JSON, has the reference's keys (F1 of their paths), and the values at the reference's leaves."""
    said, meant = read_json_leaves(text), None if reference is None else read_json_leaves(reference)
    numbers: MetricValues = {"json_valid": float(said is not None), "json_keys": None, "json_values": None}
    if meant is not None:
        numbers["json_keys"] = 0.0 if said is None else f1_score(list_key_paths(said), list_key_paths(meant))
        same = [path for path, leaf in meant.items() if said is not None and said.get(path) == leaf]
        numbers["json_values"] = len(same) / len(meant)
    return numbers


# By the path of keys and positions: whether it is true or false, and what it is.
Leaves = dict[tuple[str | int, ...], tuple[bool, Any]]


def read_json_leaves(text: str) -> Leaves | None:
    """Every leaf of a JSON text, an empty object or list being one; None where the text is no JSON as RFC 8259 has it.

    ``true`` is not 1, and 1 is 1.0.
    """
    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    leaves: Leaves = {}
    left: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while left:
        path, node = left.pop()
        if len(path) > MAX_JSON_DEPTH:
            return None
        if isinstance(node, dict | list) and node:
            inner = node.items() if isinstance(node, dict) else enumerate(node)
            left += [((*path, key), each) for key, each in inner]
        else:
            leaves[path] = isinstance(node, bool), node
    return leaves


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")  # NaN and the infinities, which Python's reader takes


def list_key_paths(leaves: Leaves) -> set[tuple[str | int, ...]]:
    """The path of every key of every object."""
    return {path[:end] for path in leaves for end in range(1, len(path) + 1) if isinstance(path[end - 1], str)}


def f1_score(said: set[Any], meant: set[Any]) -> float:
    """2 x common / (both together); 1 where there is nothing in either."""
    return 2 * len(said & meant) / (len(said) + len(meant)) if said or meant else 1.0


# --- a function of one's own -----------------------------------------------------------------------------------------


def score_by_user_function(row: dict[str, Any], name: str, function: Callable[..., Any]) -> MetricValues:
    """What ``function(text, reference, product, category)`` gives.

    It gives quality, 0-1, or a dict with it and further finite numbers; None for what is not known.

    Raises:
        RuntimeError: it fails or gives something else. The sentence says for which prompt.
    """
    where = f"eval.scorer = {name}: on {row['prompt_id']} it"
    try:
        given = function(row["text"], row.get("reference"), row.get("product") or "", row.get("category"))
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"{where} raised {in_words(error)}") from error
    values = given if isinstance(given, dict) else {"quality": given}
    if "quality" not in values:
        raise RuntimeError(f"{where} gave a dict without 'quality'")
    numbers: MetricValues = {}
    for key, value in values.items():
        if not (isinstance(key, str) and re.fullmatch(r"[A-Za-z]\w{0,39}", key, re.ASCII)):
            raise RuntimeError(f"{where} gave the name {key!r:.60}; a name has letters, digits and '_', at most 40")
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise RuntimeError(f"{where} gave {key} = {value!r:.60}; it must be a finite number, or None")
        numbers[key if key == "quality" else USER_METRIC_PREFIX + key] = None if value is None else float(value)
    quality = numbers.pop("quality")
    if quality is not None and not 0 <= quality <= 1:
        raise RuntimeError(f"{where} gave quality = {quality}; it must be from 0 to 1")
    return {"quality": None if quality is None else 100 * quality, **numbers}
