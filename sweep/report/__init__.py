"""A sweep's results as a table, a page and a CSV: a pure function of the result files.

    table        the files as rows             csv_file   report.csv
    ranking      which row is the best         markdown   report.md
    differences  where rows differ unasked     html       report.html
    overview     what is true of the sweep     terminal   what a terminal prints
    texts        what the rows wrote           show       how a value is written

The same files give the same bytes: no clock, no machine's path, no order but the sweep's own.
"""

from pathlib import Path

from lora_sweep.results import report_folder, write_atomic
from sweep.report.csv_file import csv_text
from sweep.report.html import html_text
from sweep.report.markdown import markdown_text
from sweep.report.table import load_sweep, newest_sweep
from sweep.report.terminal import terminal_text

__all__ = ["newest_sweep", "write_report"]


def write_report(runs: Path, name: str) -> str:
    """Write report.md, report.csv and report.html of the sweep ``name``; a file that is equal already stays untouched.

    Returns:
        What to print: the table, the best row, and where the three files are.

    Raises:
        Refused: there is no such sweep.
    """
    sweep = load_sweep(runs, name)
    folder = report_folder(runs, name)
    for file, text in (
        ("report.md", markdown_text(sweep)),
        ("report.csv", csv_text(sweep)),
        ("report.html", html_text(sweep)),
    ):
        data = text.encode()
        path = folder / file
        if not path.exists() or path.read_bytes() != data:
            write_atomic(path, data)
    paths = [_short(folder / file) for file in ("report.md", "report.csv", "report.html")]
    return "\n".join([terminal_text(sweep), "", *paths])


def _short(path: Path) -> str:
    """``path`` from the current folder where it is below it, else as it was given."""
    resolved, here = path.resolve(), Path.cwd().resolve()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(path)
