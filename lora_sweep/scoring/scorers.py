"""The scorers that ``eval.scorer`` can name instead of ``text``: comparisons with the reference, and user functions.

A scorer replaces ``quality`` and adds metrics; ``score`` computes the metrics that every text has. This module also
checks the settings of a scorer, and whether the references suit it. Planning never imports a user's function:
``model.inspect`` tries it in a separate process, and later the worker calls it. Imports no torch.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from numbers import Real
from typing import NoReturn, TypeAlias

from lora_sweep.config.schema import Eval
from lora_sweep.config.user_functions import find_entry_point, list_installed_scorers, load_function
from lora_sweep.errors import Refused, describe_error
from lora_sweep.runs.records import Generation

# Each built-in scorer and its main metric: quality is 100 times that metric. ``text`` is the formula of ``score``.
MAIN_METRICS: dict[str, str | None] = {
    "text": None,
    "exact_match": "exact_match",
    "label": "label_correct",
    "json": "json_values",
    "regex": "regex_match",
}
USER_METRIC_PREFIX = "score_"  # before each name that a user's function gives, so that it equals no other column
MAX_JSON_DEPTH = 100  # levels; deeper JSON counts as invalid, so that a text cannot exhaust the stack
REFERENCE_FAULTS = {
    "label": "are not among eval.labels",
    "json": "are no JSON",
    "regex": "do not hold eval.pattern",
}

MetricValues: TypeAlias = dict[str, float | None]  # quality is 0-100, the other metrics of a built-in scorer are 0-1
Scorer: TypeAlias = Callable[[Generation], MetricValues]
Comparison: TypeAlias = Callable[[str, str | None], MetricValues]  # arguments: a text, and its reference or None
JsonPath: TypeAlias = tuple[str | int, ...]  # keys and list indices from the root
JsonLeaves: TypeAlias = dict[JsonPath, tuple[bool, object]]  # path -> (whether the leaf is a boolean, its value)


def make_scorer(settings: Eval, references: Sequence[str]) -> Scorer | None:
    """The scorer that ``settings`` name; None for ``text``.

    Args:
        references: of the prompts. They are the labels if ``eval.labels`` is empty.

    Raises:
        Refused: a user's function cannot be loaded.
    """
    name = settings.scorer
    if name not in MAIN_METRICS:
        return functools.partial(score_by_user_function, name=name, function=load_function(name))
    labels = {normalize_label(label) for label in settings.labels or references}
    comparisons: dict[str, Comparison] = {
        "exact_match": score_exact_match,
        "label": functools.partial(score_label, labels=labels),
        "json": score_json,
        "regex": functools.partial(score_regex, pattern=re.compile(settings.pattern or "")),
    }
    main = MAIN_METRICS[name]
    if main is None:
        return None
    return functools.partial(score_against_reference, compare=comparisons[name], main=main)


def score_against_reference(row: Generation, compare: Comparison, main: str) -> MetricValues:
    """Quality and the metrics of a built-in scorer; without a reference, those that need one are None."""
    values = compare(row["text"], row.get("reference"))
    value = values[main]
    return {"quality": None if value is None else 100.0 * value, **values}


# --- settings --------------------------------------------------------------------------------------------------------


def check_scorer(settings: Eval) -> None:
    """Refuse a wrong scorer name and wrong settings of a scorer. Does not import a user's function.

    Raises:
        Refused: the scorer is unknown, does not read a setting, or has a pattern that is no regular expression.
    """
    name, pattern = settings.scorer, settings.pattern
    if name not in MAIN_METRICS and find_entry_point(name) is None:
        fault = "is unknown (a function of your own is written module:function)"
        raise Refused(f"eval.scorer = {name}", fault, (*MAIN_METRICS, *list_installed_scorers()), name)
    if name == "regex" and not pattern:
        raise Refused("eval.scorer = regex", "needs eval.pattern")
    for key, reader in (("pattern", "regex"), ("labels", "label")):
        if getattr(settings, key) and name != reader:
            raise Refused(f"eval.{key}", f"is only read by eval.scorer={reader}, but the scorer is {name}")
    try:
        re.compile(pattern or "")
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(f"eval.pattern = {pattern}", f"is no regular expression ({error})") from None
    check_labels(settings.labels)


def check_labels(labels: Sequence[str]) -> None:
    """Refuse a label that :func:`normalize_label` makes empty, or equal to an earlier label."""
    normalized = [normalize_label(label) for label in labels]
    for index, label in enumerate(normalized):
        if not label or label in normalized[:index]:
            fault = "is the same label as an earlier one" if label else "has only white space and punctuation"
            raise Refused(f"eval.labels: {labels[index]!r}", fault)


def check_references(settings: Eval, prompts: Sequence[Generation]) -> None:
    """Refuse references that the scorer cannot use: a reference that is scored as a text must get full marks.

    A user's function is tried on a reference, on an empty text and on a prompt without a reference.

    Args:
        prompts: rows of generations.jsonl, without their texts.

    Raises:
        Refused: a reference does not get full marks, or a user's function cannot be loaded or fails.
    """
    with_reference = [(row, reference) for row in prompts if (reference := row["reference"]) is not None]
    references = [reference for _, reference in with_reference]
    scorer = make_scorer(settings, references)
    if scorer is None:
        return
    if settings.scorer not in MAIN_METRICS:
        without_reference = [row for row in prompts if row["reference"] is None]
        try_user_function(scorer, [*(row for row, _ in with_reference[:1]), *without_reference[:1]])
        return
    scored = [scorer({**row, "text": reference}) for row, reference in with_reference]
    wrong = [reference for reference, values in zip(references, scored, strict=True) if not has_full_marks(values)]
    if wrong:
        count = f"{len(wrong)} of {len(references)} references"
        fault = f"{count} {REFERENCE_FAULTS[settings.scorer]}, first {wrong[0][:60]!r}"
        raise Refused(f"eval.scorer = {settings.scorer}", fault)


def try_user_function(scorer: Scorer, prompts: Sequence[Generation]) -> None:
    """Refuse a scorer that fails for one of the prompts, on its reference or on an empty text."""
    for row in prompts:
        for text in (row["reference"] or "", ""):
            try:
                scorer({**row, "text": text})
            except RuntimeError as error:
                raise Refused("", str(error)) from error


def has_full_marks(values: MetricValues) -> bool:
    """Whether each metric of a built-in scorer is 1."""
    return all(value == 1.0 for name, value in values.items() if name != "quality")


# --- built-in scorers: a text against its reference ------------------------------------------------------------------


def score_exact_match(text: str, reference: str | None) -> MetricValues:
    """Whether text and reference are equal, apart from their white space."""
    return {"exact_match": None if reference is None else float(text.split() == reference.split())}


def score_label(text: str, reference: str | None, labels: AbstractSet[str]) -> MetricValues:
    """Whether the text is the reference's label, and whether it is any of ``labels`` (normalized)."""
    label = normalize_label(text)
    correct = None if reference is None else float(label == normalize_label(reference))
    return {"label_correct": correct, "label_known": float(label in labels)}


def normalize_label(text: str) -> str:
    """The label in lower case, without punctuation around it: ``Positive.`` becomes ``positive``, C++ stays c++."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`")


def score_regex(text: str, reference: str | None, pattern: re.Pattern[str]) -> MetricValues:
    """Whether the first match of the pattern is the same in text and reference, and whether the text has one.

    A reference without a match counts as no reference.
    """
    match = find_match(pattern, text)
    reference_match = None if reference is None else find_match(pattern, reference)
    is_equal = None if reference_match is None else float(match == reference_match)
    return {"regex_match": is_equal, "regex_found": float(match is not None)}


def find_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of the first match, or the whole match if it has no first group; None for no match."""
    match = pattern.search(text)
    if match is None:
        return None
    return match[1] if pattern.groups and match[1] is not None else match[0]


def score_json(text: str, reference: str | None) -> MetricValues:
    """Whether the text is JSON, the F1 of the paths of its keys, and the share of the reference's leaves that it has.

    A reference that is no JSON counts as no reference.
    """
    leaves = read_json_leaves(text)
    reference_leaves = None if reference is None else read_json_leaves(reference)
    values: MetricValues = {"json_valid": float(leaves is not None), "json_keys": None, "json_values": None}
    if reference_leaves is not None:
        values["json_keys"] = values["json_values"] = 0.0
        if leaves is not None:
            values["json_keys"] = f1_score(list_key_paths(leaves), list_key_paths(reference_leaves))
            same = [path for path, leaf in reference_leaves.items() if leaves.get(path) == leaf]
            values["json_values"] = len(same) / len(reference_leaves)
    return values


def read_json_leaves(text: str) -> JsonLeaves | None:
    """Every leaf of a JSON text; an empty object or list is a leaf too. None where the text is no JSON by RFC 8259.

    A flag tells whether the leaf is a boolean: ``true`` is not 1 in JSON, but True == 1 in Python. 1 equals 1.0.
    """
    try:
        root = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    leaves: JsonLeaves = {}
    stack: list[tuple[JsonPath, object]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if len(path) > MAX_JSON_DEPTH:
            return None
        if isinstance(node, dict | list) and node:
            children = node.items() if isinstance(node, dict) else enumerate(node)
            stack += [((*path, key), child) for key, child in children]
        else:
            leaves[path] = isinstance(node, bool), node
    return leaves


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")  # Python's reader takes NaN and the infinities


def list_key_paths(leaves: JsonLeaves) -> set[JsonPath]:
    """The path of every key of every object."""
    return {path[:end] for path in leaves for end in range(1, len(path) + 1) if isinstance(path[end - 1], str)}


def f1_score(paths: set[JsonPath], reference_paths: set[JsonPath]) -> float:
    """2 * common / (number of both); 1 where both sets are empty."""
    total = len(paths) + len(reference_paths)
    return 2 * len(paths & reference_paths) / total if total else 1.0


# --- user functions --------------------------------------------------------------------------------------------------


def score_by_user_function(row: Generation, name: str, function: Callable[..., object]) -> MetricValues:
    """The metrics that ``function(text, reference, product, category)`` returns.

    It returns quality, 0-1, or a dict with ``quality`` and further finite numbers; None for a number that is unknown.
    Here quality becomes 0-100, and each further name gets USER_METRIC_PREFIX.

    Raises:
        RuntimeError: the function fails or returns something else; the message names the prompt.
    """
    where = f"eval.scorer = {name}: on {row['prompt_id']} it"
    try:
        result = function(row["text"], row.get("reference"), row.get("product") or "", row.get("category"))
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"{where} raised {describe_error(error)}") from error
    values = result if isinstance(result, dict) else {"quality": result}
    if "quality" not in values:
        raise RuntimeError(f"{where} gave a dict without 'quality'")
    metrics: MetricValues = {}
    for key, value in values.items():
        if not (isinstance(key, str) and re.fullmatch(r"[A-Za-z]\w{0,39}", key, re.ASCII)):
            raise RuntimeError(f"{where} gave the name {key!r:.60}; a name has letters, digits and '_', at most 40")
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise RuntimeError(f"{where} gave {key} = {value!r:.60}; it must be a finite number, or None")
        metrics[key if key == "quality" else USER_METRIC_PREFIX + key] = None if value is None else float(value)
    quality = metrics.pop("quality")
    if quality is not None and not 0 <= quality <= 1:
        raise RuntimeError(f"{where} gave quality = {quality}; it must be from 0 to 1")
    return {"quality": None if quality is None else 100 * quality, **metrics}
