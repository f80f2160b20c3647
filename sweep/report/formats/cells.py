"""The cells of the report's tables as text, so that the page, the Markdown and the terminal say the same.

Owns the digits of each metric and the words of the summary's cells. Knows nothing of files or of markup.
"""

from typing import Any

from lora_sweep.runs.results import STATUSES
from lora_sweep.scoring.metrics import METRICS, SCORER_METRICS
from sweep.report.analysis.load import PENDING, Row, Sweep, extra_keys, is_other
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

MODULE_LIMIT = 8  # names of target modules in one cell
ONE_DECIMAL = ("quality", "chrf", "words", "train_seconds", "generate_seconds", "gpu_utilization_percent")

HEADERS = {
    "mark": "row",
    "r": "r",
    "targets": "targets",
    "bits": "base bits",
    "quality": "quality",
    "delta_baseline": "vs baseline",
    "verdict": "verdict",
    "validation_loss": "validation loss",
    "forgetting": "forgetting",
    "trainable_params": "trainable",
    "train_seconds": "train s",
    "peak_memory_bytes": "peak memory",
    "peak_gpu_memory_bytes": "peak GPU memory",
    "adapter_bytes": "adapter",
    "status": "status",
}


def metric_help(name: str, scorer: str = "text") -> str:
    """What a metric means and which way it is better; "" for one that is not known here.

    Args:
        scorer: what says what quality is.
    """
    text, better = {**METRICS, **SCORER_METRICS}.get(name, ("", None))
    if name == "quality" and scorer != "text":
        text = f"0-100: 100 times what the scorer {scorer} gives"
    return text + {True: ", higher is better", False: ", lower is better", None: ""}[better]


def metric(name: str, value: float | int | None) -> str:
    return format_decimals(value, 1 if name in ONE_DECIMAL else 3)


def interval(name: str, low: float | None, high: float | None) -> str:
    """``[14.0, 22.5]`` in the digits of the metric; "" where it is not known."""
    return "" if low is None or high is None else f"[{metric(name, low)}, {metric(name, high)}]"


def change(name: str, value: float | None) -> str:
    """A difference, with its sign; none where it rounds to zero."""
    if value is None:
        return UNKNOWN
    text = metric(name, value).lstrip("-")
    return text if not float(text.replace(",", "")) else f"{'-' if value < 0 else '+'}{text}"


def names(modules: Any) -> str:
    """Target modules, the first few by name."""
    if not isinstance(modules, list):
        return ""
    shown = ", ".join(escape_controls(str(module)) for module in modules[:MODULE_LIMIT])
    more = len(modules) - MODULE_LIMIT
    return f"{shown} and {more} more" if more > 0 else shown


def summary_columns(sweep: Sweep) -> list[tuple[str, str]]:
    """(key, header) of the table that all of a report turns on."""
    keys = list(HEADERS)
    for key in ("peak_gpu_memory_bytes", "forgetting"):
        if all(row.get(key) is None for row in sweep.rows):
            keys.remove(key)
    after = keys.index("bits") + 1
    shown = ("base", "data", "template", "alpha", "dropout", "learning_rate", "seed")
    varied = [key for key in shown if _varies(sweep, key)]
    if any(row["eval_bits"] not in (None, row["bits"]) for row in sweep.rows):
        varied.insert(0, "eval_bits")
    extra = [*varied, *(key for key in extra_keys(sweep.varied) if _varies(sweep, key))]
    keys[after:after] = extra
    return [(key, HEADERS.get(key) or escape_controls(key.rpartition(".")[2]).replace("_", " ")) for key in keys]


def _varies(sweep: Sweep, key: str) -> bool:
    return len({format_setting(row.get(key)) for row in sweep.rows if row["kind"] == "trial"}) > 1


def cell(row: Row, key: str) -> str:
    """One cell of the summary, as text without markup."""
    value = row.get(key)
    if key == "targets":
        return baseline_words(row) if row["kind"] == "baseline" else target_words(row)
    if key == "status":
        return status(row)
    if key == "trainable_params":
        return f"{format_count(value)} ({format_millions(value)})" if value else format_count(value)
    if key in ("peak_memory_bytes", "peak_gpu_memory_bytes", "adapter_bytes"):
        return format_bytes(value)
    if key == "quality":
        return f"{metric(key, value)} {interval(key, row.get('quality_ci_low'), row.get('quality_ci_high'))}".rstrip()
    if key in ("validation_loss", "train_seconds"):
        return metric(key, value)
    if key in ("delta_baseline", "forgetting"):
        return change({"delta_baseline": "quality"}.get(key, key), value)
    return format_setting(value)


def status(row: Row) -> str:
    """``complete, other data`` for a row that was made from other data than its sweep has now."""
    seeds = f"without {count_noun(row['missing_seeds'], 'seed')}" if row.get("missing_seeds") else ""
    return ", ".join(
        part for part in (format_setting(row["status"]), seeds, describe_other_sources(row["drift"])) if part
    )


def tone(row: Row) -> str:
    """``good``, ``bad`` or ``wait``: a class of the page's styles."""
    if row["status"] == "complete":
        return "wait" if is_other(row) else "good"
    return "bad" if row["status"] in STATUSES else "wait"


def baseline_words(row: Row) -> str:
    template = row.get("template")
    return f"baseline, {shorten_text(format_setting(template), 40)} template" if template else "baseline"


def target_words(row: Row) -> str:
    """``attn: q_proj, v_proj``; a list that was typed is not said twice."""
    targets, modules = row.get("targets"), names(row.get("target_modules"))
    if isinstance(targets, list):
        return modules or names(targets)
    return f"{format_setting(targets)}: {modules}" if modules else format_setting(targets)


def row_name(row: Row) -> str:
    """How a sentence names a row: ``row 3 (r=8 attn 4bit)``."""
    return f"row {row['mark']} ({escape_controls(row['label'])})"


def is_complete(row: Row) -> bool:
    return bool(row["status"] == "complete")


def is_failed(row: Row) -> bool:
    return row["status"] not in ("complete", PENDING)


def reason(row: Row) -> str:
    return shorten_text(escape_controls(str(row["reason"]))) if row["reason"] else "no reason was recorded"
