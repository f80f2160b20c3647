"""Makes values that a tracker can hold: numbers of a trial, valid texts, cells of tables, and no secrets."""

import json
import math
import re
from collections.abc import Mapping, Sequence

from lora_sweep.runs.records import EvaluationResult, TrialResult
from lora_sweep.scoring.intervals import mean_interval
from lora_sweep.scoring.metrics import SHARE_SCORERS

SECRET = r"(?:token|secret|password|api_?key)"


def collect_numbers(
    kind: str, training: TrialResult, evaluation: EvaluationResult, qualities: Sequence[float | None]
) -> dict[str, float | None]:
    """The numbers of a trial's two results, and the interval of its quality over the prompts.

    Some names, such as memory and bits, are in both results. As in the report, the training's number is then taken for
    a trial, and the evaluation's for a baseline.

    Args:
        kind: ``trial`` or ``baseline``.
        qualities: the quality of each prompt, 0-100, or None.
    """
    of_training, of_evaluation = select_numbers(training), select_numbers(evaluation)
    numbers = {**of_evaluation, **of_training} if kind == "trial" else {**of_training, **of_evaluation}
    scored = [quality for quality in qualities if quality is not None]
    interval = mean_interval(scored, scale=100, is_share=evaluation.eval.get("scorer") in SHARE_SCORERS)
    low, high = interval or (None, None)
    return {**numbers, "eval_bits": evaluation.bits, "quality_ci_low": low, "quality_ci_high": high}


def select_numbers(result: TrialResult | EvaluationResult) -> dict[str, float]:
    """The fields of a result that are numbers."""
    return {name: value for name, value in vars(result).items() if isinstance(value, int | float)}


def clean_mapping(values: Mapping[str, object]) -> dict[str, object]:
    """Each value cleaned; a secret under a name like ``hub_token`` becomes ``***``."""
    return {str(name): clean_value(value, str(name)) for name, value in values.items()}


def clean_value(value: object, key: str = "") -> object:
    """``value`` with valid Unicode, keys that are text, and no secret: see :func:`clean_mapping`."""
    if isinstance(value, dict):
        return clean_mapping(value)
    if isinstance(value, list | tuple):
        return [clean_value(item, key) for item in value]
    if isinstance(value, str):
        return "***" if re.search(rf"(?i){SECRET}$", key) else replace_surrogates(value)
    return value if value is None or isinstance(value, bool | int | float) else replace_surrogates(str(value))


def hide_secrets(command: str) -> str:
    """A command line in which the value of an override like ``hub_token=`` is ``***``."""
    return re.sub(rf"(?i)({SECRET}=)\S+", r"\1***", command)


def format_cell(value: object) -> object:
    """``value`` as a table's cell: a list as text with commas, a dict as JSON, a number that is not finite as None."""
    if isinstance(value, list | tuple):
        return replace_surrogates(", ".join(str(item) for item in value))
    if isinstance(value, dict):
        return replace_surrogates(json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clean_value(value)


def replace_surrogates(text: str) -> str:
    """``text`` with a question mark for each lone surrogate, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()
