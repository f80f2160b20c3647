"""``python -m sweep.dashboard [NAME]``: save a W&B workspace and a W&B report of a sweep whose runs are in W&B.

This module decides what the two pages show. The numbers are already in the runs of W&B, and the sentences come from
``sweep.report``. Each call saves a new workspace and a new report, so that earlier ones keep the changes that people
made to them.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from lora_sweep.config.checks import check_sweep_name
from lora_sweep.config.schema import Tracking
from lora_sweep.errors import EXIT_COMPLETE, EXIT_FAILED, EXIT_REFUSED, Refused, describe_error
from lora_sweep.tracking.run import is_logged_in
from lora_sweep.tracking.tables import COSTS, make_charts
from sweep.report.analysis.analyse import Analysis, analyse_sweep
from sweep.report.analysis.configurations import look_up
from sweep.report.formats.page_data import write_page_data
from sweep.store.sweep_file import find_newest_sweep

MAX_RUNS = 100  # drawn in one panel; the default of W&B is 10
COLUMNS = ("quality", "quality_ci_low", "quality_ci_high", *COSTS, "validation_loss", "finished", "status")
PANEL_WIDTH, PANEL_HEIGHT = 12, 8  # grid units of the report, which is 24 units wide


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, 1 if W&B refused to save, 78 without the sweep, login or package."""
    parser = argparse.ArgumentParser(prog="python -m sweep.dashboard", description="Save a W&B workspace and report.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep (default: the one that was started last)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    parser.add_argument("--entity", help="W&B's user or team (default: the sweep's, else yours)")
    parser.add_argument("--project", help="W&B's project (default: the sweep's)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be saved, as JSON; no network")
    options = parser.parse_args(arguments)
    try:
        name = options.name or find_newest_sweep(options.runs)
        check_sweep_name(name)
        analysis = analyse_sweep(options.runs, name)
        entity, project = find_project(analysis, options.entity, options.project)
        if options.dry_run:
            print(json.dumps(dump_dashboard(analysis, entity or "", project), indent=1, default=str))
            return EXIT_COMPLETE
        return save_dashboard(analysis, entity, project)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return EXIT_REFUSED


def find_project(analysis: Analysis, entity: str | None, project: str | None) -> tuple[str | None, str]:
    """W&B's entity and project: the arguments, else those of the first trial of the sweep that has one."""

    def find_setting(key: str) -> str | None:
        values = (look_up(trial.record.config, key) for trial in analysis.sweep.trials)
        return next((value for value in values if isinstance(value, str)), None)

    entity, project = entity or find_setting("tracking.entity"), project or find_setting("tracking.project")
    return entity, project or Tracking().project


def save_dashboard(analysis: Analysis, entity: str | None, project: str) -> int:
    """Save the workspace and the report, and print their addresses; returns the exit code.

    Raises:
        Refused: wandb-workspaces is not installed, or nobody is logged in to W&B.
    """
    import_workspaces()
    if not is_logged_in(Tracking(mode="online")):
        raise Refused("W&B", "nobody is logged in (wandb login); --dry-run shows what would be saved")
    try:
        entity = entity or str(importlib.import_module("wandb").Api().default_entity)
        for kind, build in {"workspace": build_workspace, "report": build_report}.items():
            page = build(analysis, entity, project)
            page.save()
            print(f"{kind}: {page.url}")
    except Exception as error:  # noqa: BLE001 - an error of the network or the server becomes one sentence
        print(f"W&B could not save it: {describe_error(error)}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_COMPLETE


def dump_dashboard(analysis: Analysis, entity: str, project: str) -> dict[str, object]:
    """The workspace and the report as JSON, without a call to W&B.

    The set of runs in the report has no entity, because wandb-workspaces would ask W&B for the number of its project.
    """
    report = build_report(analysis, entity, project, runs_entity="")
    pages = {"workspace": build_workspace(analysis, entity, project), "report": report}
    return {kind: page._to_model().model_dump(by_alias=True, exclude_none=True) for kind, page in pages.items()}


def import_workspaces() -> tuple[Any, Any, Any]:
    """The modules of wandb-workspaces for workspaces, reports and filters.

    Raises:
        Refused: wandb-workspaces is not installed.
    """
    names = ("workspaces", "reports.v2", "expr")
    try:
        workspaces, reports, expr = (importlib.import_module(f"wandb_workspaces.{name}") for name in names)
    except ImportError:
        raise Refused("python -m sweep.dashboard", "needs: pip install wandb-workspaces") from None
    return workspaces, reports, expr


# --- content of the pages ----------------------------------------------------------------------------------------


def build_workspace(analysis: Analysis, entity: str, project: str) -> Any:
    """A ``Workspace`` of wandb-workspaces with the runs of the sweep, best first, and their numbers in columns."""
    workspaces, _, expr = import_workspaces()
    sections = [
        workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in build_panels(analysis).items()
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"LoRA sweep {analysis.sweep.name}",
        sections=sections,
        settings=workspaces.WorkspaceSettings(max_runs=MAX_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == analysis.sweep.name),
            order=[expr.Ordering(expr.Summary("quality"), ascending=False)],
            pinned_columns=[f"summary:{column}" for column in COLUMNS],
        ),
    )


def build_report(analysis: Analysis, entity: str, project: str, runs_entity: str | None = None) -> Any:
    """A ``Report`` of wandb-workspaces: the recommendation of report.md with its reasons, then the same panels."""
    _, reports, expr = import_workspaces()
    runs = reports.Runset(
        entity=entity if runs_entity is None else runs_entity,
        project=project,
        name=analysis.sweep.name,
        filters=expr.And(expr.Metric("Group") == analysis.sweep.name),
        order=[reports.OrderBy(reports.SummaryMetric("quality"), ascending=False)],
    )
    blocks = [reports.H1("What to use"), reports.P(analysis.ranking.text)]
    sentences = [*analysis.ranking.notes, *(observation.text for observation in analysis.observations)]
    if analysis.test is not None:
        sentences.insert(0, analysis.test.text)
    if sentences:
        blocks.append(reports.UnorderedList(sentences))
    for name, panels in build_panels(analysis).items():
        grid = reports.PanelGrid(runsets=[runs], panels=lay_out_panels(panels), hide_run_sets=True)
        blocks += [reports.H2(name), grid]
    title = f"LoRA sweep {analysis.sweep.name}"
    return reports.Report(project=project, entity=entity, title=title, blocks=blocks, width="fluid")


def build_panels(analysis: Analysis) -> dict[str, list[Any]]:
    """The panels of each section. Sections without a panel are left out."""
    _, reports, _ = import_workspaces()

    def make_bars(title: str, metric: str) -> Any:
        return reports.BarPlot(title=title, metrics=[metric], max_runs_to_show=MAX_RUNS, max_bars_to_show=MAX_RUNS)

    def make_lines(title: str, metric: str) -> Any:
        return reports.LinePlot(title=title, x="Step", y=[metric], max_runs_to_show=MAX_RUNS)

    def make_table(key: str) -> Any:
        return reports.WeavePanelSummaryTable(table_name=key)

    quality = reports.SummaryMetric("quality")
    scatters = [
        reports.ScatterPlot(title=f"Quality against {words}", x=reports.SummaryMetric(cost), y=quality)
        for cost, words in COSTS.items()
    ]
    effects = [
        reports.CustomChart(
            query={"summaryTable": {"tableKey": f"{chart.key}_table"}},
            chart_name="wandb/bar/v0",  # the chart that wandb.plot.bar makes
            chart_fields={"label": chart.columns[0], "value": chart.columns[1]},
            chart_strings={"title": chart.title},
        )
        for chart in make_charts(write_page_data(analysis)[0])
        if chart.kind == "bar"
    ]
    sections = {
        "Ranking": [make_bars("Quality (0-100)", "quality"), make_table("ranking")],
        "Quality against cost": scatters,
        "What each setting changes": effects,
        "Loss": [make_lines("Training loss", "train/loss"), make_bars("Validation loss", "validation_loss")],
        "Memory and time": [
            make_bars("Peak memory (bytes)", "peak_memory_bytes"),
            make_bars("Training (s)", "train_seconds"),
        ],
        "Texts side by side": [make_table("side_by_side")],
    }
    return {name: panels for name, panels in sections.items() if panels}


def lay_out_panels(panels: list[Any]) -> list[Any]:
    """Place the panels in rows of two; a single panel takes the whole width."""
    _, reports, _ = import_workspaces()
    width = 2 * PANEL_WIDTH if len(panels) == 1 else PANEL_WIDTH
    for index, panel in enumerate(panels):
        row, column = divmod(index, 2)
        panel.layout = reports.Layout(x=column * PANEL_WIDTH, y=row * PANEL_HEIGHT, w=width, h=PANEL_HEIGHT)
    return panels


if __name__ == "__main__":
    sys.exit(main())
