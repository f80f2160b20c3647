"""The cells of the report's tables and the names of its rows as plain text, the same in every format."""

from collections.abc import Sequence

from lora_sweep.runs.results import STATUSES
from lora_sweep.scoring.metrics import METRICS, SCORER_METRICS
from sweep.report.analysis.configurations import OBJECTIVE, Number, TrialSummary
from sweep.report.analysis.rows import ReportRow
from sweep.report.formats.columns import find_column
from sweep.store.drift import describe_other_sources
from sweep.text import (
    UNKNOWN,
    count_noun,
    escape_controls,
    format_bytes,
    format_count,
    format_decimals,
    format_millions,
    format_setting,
    shorten_text,
)

MAX_MODULES = 8  # names of target modules in one cell
MAX_TEMPLATE_CHARACTERS = 40
DEFAULT_DIGITS = 3  # of a metric that is not in METRICS


def explain_metric(name: str, scorer: str = "text") -> str:
    """What a metric means and whether higher is better; "" for a metric without a description.

    Args:
        scorer: the name of the scorer that computes the quality.
    """
    meaning, is_higher_better = {**METRICS, **SCORER_METRICS}.get(name, ("", None))
    if name == "quality" and scorer != "text":
        meaning = f"0-100: 100 times what the scorer {scorer} gives"
    return meaning + {True: ", higher is better", False: ", lower is better", None: ""}[is_higher_better]


def format_metric(key: str, value: Number | None) -> str:
    """A number with the digits of its column."""
    digits = find_column(key).digits
    return format_decimals(value, DEFAULT_DIGITS if digits is None else digits)


def format_interval(key: str, low: float | None, high: float | None) -> str:
    """``[14.0, 22.5]`` with the digits of the column; "" if the interval is unknown."""
    return "" if low is None or high is None else f"[{format_metric(key, low)}, {format_metric(key, high)}]"


def format_change(key: str, value: float | None) -> str:
    """A difference with its sign, and without a sign if it rounds to zero."""
    if value is None:
        return UNKNOWN
    text = format_metric(key, value).lstrip("-")
    return text if not float(text.replace(",", "")) else f"{'-' if value < 0 else '+'}{text}"


def format_quality(row: ReportRow) -> str:
    """``20.7 [14.0, 22.5]``"""
    interval = format_interval(OBJECTIVE, row.quality_ci_low, row.quality_ci_high)
    return f"{format_metric(OBJECTIVE, row.objective)} {interval}".rstrip()


def format_modules(modules: Sequence[object] | None) -> str:
    """Target modules, the first few by name."""
    if not modules:
        return ""
    shown = ", ".join(escape_controls(str(module)) for module in modules[:MAX_MODULES])
    more = len(modules) - MAX_MODULES
    return f"{shown} and {more} more" if more > 0 else shown


def format_cell(row: ReportRow, key: str) -> str:
    """One cell of the summary table, without markup."""
    if key == "targets":
        return describe_baseline(row) if row.is_baseline else describe_targets(row)
    if key == "status":
        return describe_status(row)
    if key == OBJECTIVE:
        return format_quality(row)
    column, value = find_column(key), row.value(key)
    if value is None or column.digits is None or not isinstance(value, int | float):
        return format_setting(value)
    if column.unit == "parameters":
        return f"{format_count(value)} ({format_millions(value)})" if value else format_count(value)
    if column.unit == "bytes":
        return format_bytes(value)
    return format_change(key, value) if column.unit == "change" else format_metric(key, value)


def describe_status(row: TrialSummary) -> str:
    """``complete, other data`` for a row that was made from other data than the sweep has now."""
    seeds = f"without {count_noun(row.missing_seeds, 'seed')}" if row.missing_seeds else ""
    return ", ".join(
        part for part in (format_setting(row.status), seeds, describe_other_sources(list(row.drift))) if part
    )


def choose_tone(row: TrialSummary) -> str:
    """The class of a status in page.css: ``good``, ``bad`` or ``wait``."""
    if row.is_complete:
        return "wait" if row.is_outdated else "good"
    return "bad" if row.status in STATUSES else "wait"


def describe_baseline(row: TrialSummary) -> str:
    if not row.template:
        return "baseline"
    return f"baseline, {shorten_text(format_setting(row.template), MAX_TEMPLATE_CHARACTERS)} template"


def describe_targets(row: TrialSummary) -> str:
    """``attn: q_proj, v_proj``, or only the modules if the targets are a list of modules themselves."""
    modules = format_modules(row.target_modules)
    if isinstance(row.targets, list):
        return modules or format_modules(row.targets)
    return f"{format_setting(row.targets)}: {modules}" if modules else format_setting(row.targets)


def describe_reason(row: TrialSummary) -> str:
    return shorten_text(escape_controls(row.reason)) if row.reason else "no reason was recorded"


def name_row(row: TrialSummary) -> str:
    """How a sentence names a row: ``row 3 (r=8 attn 4bit)``."""
    return f"row {row.mark} ({escape_controls(row.label)})"
