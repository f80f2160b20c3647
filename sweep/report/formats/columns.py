"""The columns of the report's tables: every format reads headers, digits, units and alignment from here."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lora_sweep.scoring.metrics import METRICS
from sweep.text import escape_controls

Unit: TypeAlias = Literal["", "parameters", "seconds", "bytes", "change"]  # a "change" is a difference with its sign


@dataclass(frozen=True)
class ReportColumn:
    """One column.

    Attributes:
        key: the name of the value in a row, which is also the header in report.csv.
        header: the header in every other table.
        digits: digits after the decimal point; None for a setting or a text, which is written unchanged.
        terminal_header: a shorter header for the table on a terminal; "" for the same one.
    """

    key: str
    header: str
    digits: int | None = None
    unit: Unit = ""
    align: Literal["left", "right"] = "left"
    terminal_header: str = ""


def number_column(
    key: str, header: str = "", digits: int | None = 3, unit: Unit = "", terminal_header: str = ""
) -> ReportColumn:
    """A column of numbers."""
    return ReportColumn(key, header or name_header(key), digits, unit, "right", terminal_header)


def text_column(key: str, header: str = "") -> ReportColumn:
    """A column of words."""
    return ReportColumn(key, header or name_header(key))


def name_header(key: str) -> str:
    """The last part of a dotted key, in words."""
    return escape_controls(key.rpartition(".")[2]).replace("_", " ")


ONE_DIGIT_METRICS = ("quality", "chrf", "words")  # they reach 100 and more; other metrics have three digits
METRIC_COLUMNS = {
    name: number_column(name, name_header(name), 1 if name in ONE_DIGIT_METRICS else 3) for name in METRICS
}
# In the order of report.csv, where further metrics and varied keys follow.
BEFORE_METRICS = (
    text_column("trial_id"),
    text_column("kind"),
    number_column("r", digits=None),
    number_column("alpha", digits=None),
    text_column("targets"),
    text_column("target_modules"),
    number_column("bits", "base bits", digits=None),
    text_column("seed"),
    text_column("status"),
    METRIC_COLUMNS["quality"],
    number_column("validation_loss", terminal_header="loss"),
    number_column("trainable_params", "trainable", 0, "parameters"),
    number_column("train_seconds", "train s", 1, "seconds"),
    number_column("tokens_per_second"),
    number_column("peak_memory_bytes", "peak memory", 0, "bytes", "peak mem"),
    number_column("adapter_bytes", "adapter", 0, "bytes"),
    text_column("eval_id"),
    text_column("label"),
    text_column("reason"),
    text_column("drift"),
    number_column("dropout", digits=None),
    number_column("learning_rate", digits=None),
    text_column("base"),
    text_column("data"),
    text_column("template"),
    number_column("eval_bits", digits=None),
    number_column("steps", digits=0),
    number_column("train_loss"),
    number_column("neutral_loss"),
    number_column("forgetting", unit="change"),
    number_column("quality_ci_low", digits=1),
    number_column("quality_ci_high", digits=1),
    number_column("delta_baseline", "vs baseline", 1, "change", "vs base"),
    number_column("delta_best", "vs best", 1, "change"),
    text_column("tied_with_best"),
    text_column("verdict"),
)
AFTER_METRICS = (
    text_column("device"),
    text_column("dtype"),
    number_column("peak_gpu_memory_bytes", "peak GPU memory", 0, "bytes"),
    number_column("gpu_utilization_percent", digits=1),
    number_column("generate_seconds", digits=1, unit="seconds"),
    number_column("generate_tokens_per_second"),
)
COLUMNS = {
    column.key: column
    for column in (text_column("mark", "row"), *BEFORE_METRICS, *METRIC_COLUMNS.values(), *AFTER_METRICS)
}

# The summary of report.md and of the page, in order; varied settings follow the base bits.
SUMMARY_KEYS = (
    "mark",
    "r",
    "targets",
    "bits",
    "quality",
    "delta_baseline",
    "verdict",
    "validation_loss",
    "forgetting",
    "trainable_params",
    "train_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "adapter_bytes",
    "status",
)
OPTIONAL_KEYS = ("peak_gpu_memory_bytes", "forgetting")  # left out of the summary if no row has a value
# These are in the summary if the rows differ.
VARIED_KEYS = ("base", "data", "template", "alpha", "dropout", "learning_rate", "seed")
TERMINAL_KEYS = (
    "quality",
    "delta_baseline",
    "verdict",
    "validation_loss",
    "trainable_params",
    "train_seconds",
    "peak_memory_bytes",
    "status",
)


def find_column(key: str) -> ReportColumn:
    """The column of a field, of a metric or of a varied config key."""
    return COLUMNS.get(key) or text_column(key)
