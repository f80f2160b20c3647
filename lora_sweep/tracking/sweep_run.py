"""The run of a whole sweep in a tracker: its rows, tables, charts and report files, and the best rows as a summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_sweep.config.schema import Tracking
from lora_sweep.runs.files import report_folder
from lora_sweep.tracking.mirror import Values
from lora_sweep.tracking.run import open_run
from lora_sweep.tracking.tables import PageData, make_charts, make_tables
from lora_sweep.tracking.values import hide_secrets

REPORT_FILES = ("report.html", "report.md", "report.csv", "report.json")


def log_sweep(
    tracking: Tracking,
    runs_dir: Path,
    *,
    name: str,
    command: str,
    rows: Sequence[Values],
    charts: PageData | None = None,
) -> None:
    """Open the sweep's run, write everything to it, and end it.

    Args:
        rows: the rows of report.csv. ``kind``, ``status``, ``quality``, ``label`` and ``drift`` are read.
        charts: the data of the report's page (``page_data``). Missing parts are left out.
    """
    page = charts or {}
    run = open_run(
        tracking,
        runs_dir,
        group=name,
        name=f"sweep {name}",
        run_id=f"sweep-{name}",
        job_type="sweep",
        config={"sweep": name, "command": hide_secrets(command)},
        tags=["sweep"],
    )
    if rows:
        run.log_table("trials", rows)
    for key, table in make_tables(page).items():
        run.log_table(key, table)
    for chart in make_charts(page):
        run.log_chart(chart)
    paths = [path for file in REPORT_FILES if (path := report_folder(runs_dir, name) / file).is_file()]
    if paths:
        run.log_files(f"report-{name}", paths)
    run.finish({**summarize_rows(rows), **summarize_recommended(page)})


def summarize_recommended(page: PageData) -> dict[str, object]:
    """The label, quality and interval of the row that the report recommends; {} if it recommends none."""
    recommended = next((row for row in page.get("rows", []) if row.get("recommended")), None)
    if recommended is None:
        return {}
    keys = {"label": "label", "quality": "quality", "quality_ci_low": "low", "quality_ci_high": "high"}
    return {f"recommended_{name}": recommended.get(key) for name, key in keys.items()}


def summarize_rows(rows: Sequence[Values]) -> dict[str, object]:
    """How many rows there are, how many are complete, and the highest quality of a trial and of a baseline.

    A row cannot be the best if its base model or data have changed since (``drift``).
    """
    complete = [row for row in rows if row.get("status") == "complete"]
    summary: dict[str, object] = {"trials": len(rows), "complete": len(complete)}
    for kind, key in (("trial", "best"), ("baseline", "baseline")):
        best = find_best([row for row in complete if row.get("kind") == kind and not has_drifted(row)])
        if best is not None:
            summary |= {f"{key}_quality": best["quality"], f"{key}_label": best.get("label")}
    return summary


def has_drifted(row: Values) -> bool:
    """Whether the row's base model or data are no longer those of the sweep."""
    drift = row.get("drift")
    return isinstance(drift, Sequence | Mapping) and bool({"model", "data"} & set(drift))


def find_best(rows: Sequence[Values]) -> Values | None:
    """The first of the rows that have the highest quality; None where none has a quality."""
    best, best_quality = None, float("-inf")
    for row in rows:
        quality = row.get("quality")
        if isinstance(quality, int | float) and quality > best_quality:
            best, best_quality = row, quality
    return best
