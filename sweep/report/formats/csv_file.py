"""report.csv: a line for each trial, numbers with all digits, and no cell that a spreadsheet would run as a formula."""

import csv
import io

from sweep.report.analysis.analyse import Analysis
from sweep.report.formats.summary import list_csv_keys
from sweep.text import escape_controls

# A spreadsheet runs a cell that starts like this as a formula (OWASP, "CSV Injection"), also after a tab or newline.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(analysis: Analysis) -> str:
    """The table with its header. An unknown value is an empty cell; the items of a list are joined by spaces."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    keys = list_csv_keys(analysis)
    writer.writerow([defuse_text(key) for key in keys])
    for row in analysis.rows.trials:
        writer.writerow([write_csv_cell(row.value(key)) for key in keys])
    return file.getvalue()


def write_csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, list):
        return defuse_text(" ".join(str(item) for item in value))
    return defuse_text(str(value))


def defuse_text(text: str) -> str:
    """``text``, with a quote in front if a spreadsheet would take it for a formula."""
    return ("'" if text.startswith(FORMULA_STARTS) else "") + escape_controls(text)
