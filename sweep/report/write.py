"""Write a sweep's report: a pure function of the files of its trials.

The same files give the same bytes: there is no clock, no path of a machine, and no order but the sweep's own.

    analysis/  the numbers            load            reads the files of a sweep into trials
                                      configurations  groups trials that differ only in their seed
                                      comparison      compares configurations
                                      ranking         chooses the configuration to use
                                      effects         measures what each factor changes
                                      observations    writes sentences about effects and warnings
                                      differences     finds unintended differences between rows
                                      overview        lists facts about the whole sweep
                                      texts           collects the texts that the rows wrote
                                      votes           counts which texts people found better
                                      rows            makes the rows of the tables
                                      analyse         computes all of this once
    formats/   a module for each      markdown, csv_file, json_file, html (with page_data), terminal, png
               shared by them         columns, summary, cells, comparison_table, commands
    page/      the page's template, styles and scripts
"""

from pathlib import Path

from lora_sweep.runs.files import report_folder, write_atomic
from sweep.report.analysis.analyse import analyse_sweep
from sweep.report.analysis.texts import SHARDS
from sweep.report.formats.csv_file import write_csv
from sweep.report.formats.html import make_context, render_page
from sweep.report.formats.json_file import write_json_report
from sweep.report.formats.markdown import write_markdown
from sweep.report.formats.page_data import write_page_data
from sweep.report.formats.terminal import write_terminal

FILES = ("report.md", "report.csv", "report.json", "report.html")


def write_report(runs: Path, name: str, png: bool = False) -> str:
    """Write a sweep's report files. A file whose content is the same stays untouched.

    Args:
        png: also write the main charts as pictures, into the folder ``report-png``.

    Returns:
        What to print: the table, what to use, and where the files are.

    Raises:
        Refused: the sweep does not exist.
    """
    analysis = analyse_sweep(runs, name)
    folder = report_folder(runs, name)
    data, shards = write_page_data(analysis)
    page = render_page(make_context(analysis), data)
    texts = (write_markdown(analysis), write_csv(analysis), write_json_report(analysis), page)
    for file, text in [*zip(FILES, texts, strict=True), *shards.items()]:
        content = text.encode()
        path = folder / file
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, content)
    for stale in (folder / SHARDS).glob("*.js"):
        if f"{SHARDS}/{stale.name}" not in shards:
            stale.unlink()
    paths = [folder / file for file in FILES]
    if png:
        from sweep.report.formats.png import write_pngs  # here, because importing matplotlib takes half a second

        paths += write_pngs(data, folder / "report-png")
    return "\n".join([write_terminal(analysis), "", *map(shorten_path, paths)])


def shorten_path(path: Path) -> str:
    """``path`` relative to the current folder if it is inside, else unchanged."""
    resolved, here = path.resolve(), Path.cwd().resolve()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(path)
