"""A sweep's results as a table, a page and a CSV: a pure function of the result files.

    table         the files as rows                    analysis   all of it, computed once
    entries       rows that differ in their seed       html       report.html, with page_data and page/
    standing      entries compared                     markdown   report.md
    ranking       which one to use                     csv_file   report.csv
    effects       what each factor changes             json_file  report.json
    observations  the same in sentences                terminal   what a terminal prints
    differences   where rows differ unasked            png        charts as files
    overview      what is true of the sweep            show       how a value is written
    texts         what the rows wrote                  commands   what to type next
    votes         what people found better             comparisons  every comparison as a table

The same files give the same bytes: no clock, no machine's path, no order but the sweep's own.
"""

from pathlib import Path

from lora_sweep.runs.files import report_folder, write_atomic
from sweep.report.analysis.analysis import analyse
from sweep.report.analysis.texts import SHARDS
from sweep.report.formats.csv_file import csv_text
from sweep.report.formats.html import context, page_text
from sweep.report.formats.json_file import json_text
from sweep.report.formats.markdown import markdown_text
from sweep.report.formats.page_data import page_data
from sweep.report.formats.terminal import terminal_text

FILES = ("report.md", "report.csv", "report.json", "report.html")


def write_report(runs: Path, name: str, png: bool = False) -> str:
    """Write a sweep's report files; a file that is equal already stays untouched.

    Args:
        png: also the main charts as pictures, in the folder ``report-png``.

    Returns:
        What to print: the table, what to use, and where the files are.

    Raises:
        Refused: there is no such sweep.
    """
    analysis = analyse(runs, name)
    folder = report_folder(runs, name)
    data, beside = page_data(analysis)
    texts = (markdown_text(analysis), csv_text(analysis), json_text(analysis), page_text(context(analysis), data))
    for file, text in [*zip(FILES, texts, strict=True), *beside.items()]:
        content = text.encode()
        path = folder / file
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, content)
    for stale in (folder / SHARDS).glob("*.js"):
        if f"{SHARDS}/{stale.name}" not in beside:
            stale.unlink()
    paths = [folder / file for file in FILES]
    if png:
        from sweep.report.formats.png import write_pngs  # imports matplotlib: half a second

        paths += write_pngs(data, folder / "report-png")
    return "\n".join([terminal_text(analysis), "", *map(_short, paths)])


def _short(path: Path) -> str:
    """``path`` from the current folder where it is below it, else as it was given."""
    resolved, here = path.resolve(), Path.cwd().resolve()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(path)
