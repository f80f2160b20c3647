"""The columns of the report's tables, which depend on what the sweep varied and measured."""

from sweep.report.analysis.analyse import Analysis
from sweep.report.analysis.load import list_extra_keys, list_metrics
from sweep.report.formats.columns import (
    AFTER_METRICS,
    BEFORE_METRICS,
    OPTIONAL_KEYS,
    SUMMARY_KEYS,
    VARIED_KEYS,
    ReportColumn,
    find_column,
)
from sweep.text import format_setting


def list_csv_keys(analysis: Analysis) -> list[str]:
    """The columns of report.csv, in order."""
    before, after = [column.key for column in BEFORE_METRICS], [column.key for column in AFTER_METRICS]
    metrics = [name for name in list_metrics(analysis.sweep) if name != "quality"]
    return [*before, *metrics, *after, *list_extra_keys(analysis.sweep.varied)]


def list_summary_columns(analysis: Analysis) -> list[ReportColumn]:
    """The columns of the first table in report.md and in the page."""
    rows = analysis.rows.trials
    keys = [key for key in SUMMARY_KEYS if key not in OPTIONAL_KEYS or any(row.value(key) is not None for row in rows)]
    varied = [key for key in (*VARIED_KEYS, *list_extra_keys(analysis.sweep.varied)) if is_varied(analysis, key)]
    if any(row.eval_bits not in (None, row.bits) for row in rows):
        varied.insert(0, "eval_bits")
    after = keys.index("bits") + 1
    return [find_column(key) for key in [*keys[:after], *varied, *keys[after:]]]


def is_varied(analysis: Analysis, key: str) -> bool:
    """Whether the trials have more than one value of a setting."""
    return len({format_setting(row.value(key)) for row in analysis.rows.trials if not row.is_baseline}) > 1
