"""report.csv: a row a trial, every number in full, nothing that a spreadsheet would run."""

import csv
import io
from typing import Any

from sweep.report.analysis.analysis import Analysis
from sweep.report.analysis.load import columns
from sweep.text import escape_controls

# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV Injection"); tab and CR lead into one.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(analysis: Analysis) -> str:
    """The table with its header. Unknown is an empty cell; a list is joined by a space; floats are repr."""
    sweep = analysis.sweep
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = columns(sweep)
    writer.writerow([_text(name) for name in names])
    for row in sweep.rows:
        writer.writerow([csv_cell(row.get(name)) for name in names])
    return file.getvalue()


def csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, list):
        return _text(" ".join(str(item) for item in value))
    return _text(str(value))


def _text(text: str) -> str:
    return ("'" if text.startswith(FORMULA_STARTS) else "") + escape_controls(text)
