"""`python -m sweep.dashboard [NAME]`: a saved W&B workspace and a W&B report of a sweep whose runs are in W&B.

Owns what the two show. The numbers are in the runs already (``lora_sweep.tracking.run``); what is said of them is said
by ``sweep.report``. Each call saves new ones: W&B keeps what somebody changed in those of before.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Tracking, check_sweep_name
from lora_sweep.errors import EXIT_COMPLETE, EXIT_FAILED, EXIT_REFUSED, Refused
from lora_sweep.tracking.run import is_logged_in
from lora_sweep.tracking.tables import COSTS, make_charts
from lora_sweep.tracking.values import shorten_error
from sweep.report.analysis.analyse import Analysis, analyse_sweep
from sweep.report.analysis.configurations import look_up
from sweep.report.formats.page_data import write_page_data
from sweep.store.sweep_file import find_newest_sweep

MAX_RUNS = 100  # drawn in one panel; W&B's own limit is 10
COLUMNS = ("quality", "quality_ci_low", "quality_ci_high", *COSTS, "validation_loss", "finished", "status")
WIDTH, HEIGHT = 12, 8  # of a panel of the report, whose grid is 24 wide
Json = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 where W&B did not take it, or 78 when there is no such sweep, no login or no package."""
    parser = argparse.ArgumentParser(prog="python -m sweep.dashboard", description="Save a W&B workspace and report.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep; left out: the one that was started last")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    parser.add_argument("--entity", help="W&B's user or team (default: the sweep's, else yours)")
    parser.add_argument("--project", help="W&B's project (default: the sweep's)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be saved, as JSON; no network")
    given = parser.parse_args(arguments)
    try:
        name = given.name or find_newest_sweep(given.runs)
        check_sweep_name(name)
        analysis = analyse_sweep(given.runs, name)
        entity, project = place_of(analysis, given.entity, given.project)
        if given.dry_run:
            print(json.dumps(as_json(analysis, entity or "", project), indent=1, default=str))
            return EXIT_COMPLETE
        return save(analysis, entity, project)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return EXIT_REFUSED


def place_of(analysis: Analysis, entity: str | None, project: str | None) -> tuple[str | None, str]:
    """W&B's entity and project: as given, else those of the sweep's trials."""
    configs = [trial.record.config for trial in analysis.sweep.trials]
    entities = [found for config in configs if isinstance(found := look_up(config, "tracking.entity"), str)]
    projects = [found for config in configs if isinstance(found := look_up(config, "tracking.project"), str)]
    return entity or next(iter(entities), None), project or next(iter(projects), Tracking().project)


def save(analysis: Analysis, entity: str | None, project: str) -> int:
    """Save both, print where they are, and give the exit code.

    Raises:
        Refused: nobody is logged in.
    """
    packages()
    if not is_logged_in(Tracking(mode="online")):
        raise Refused("W&B", "nobody is logged in (wandb login); --dry-run shows what would be saved")
    try:
        entity = entity or str(importlib.import_module("wandb").Api().default_entity)
        for build in (workspace, report):
            made = build(analysis, entity, project)
            made.save()
            print(f"{build.__name__}: {made.url}")
    except Exception as error:  # noqa: BLE001 - the network's or the server's, in one sentence
        print(f"W&B did not take it: {shorten_error(error)}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_COMPLETE


def as_json(analysis: Analysis, entity: str, project: str) -> Json:
    """What would be saved. The report's set of runs names no entity: W&B would be asked for the project's number."""
    shown = report(analysis, entity, project, runs_entity="")
    made = {"workspace": workspace(analysis, entity, project), "report": shown}
    return {kind: each._to_model().model_dump(by_alias=True, exclude_none=True) for kind, each in made.items()}


def packages() -> tuple[Any, Any, Any]:
    """wandb-workspaces' modules for workspaces, reports and filters.

    Raises:
        Refused: it is not installed.
    """
    names = ("workspaces", "reports.v2", "expr")
    try:
        workspaces, reports, expr = (importlib.import_module(f"wandb_workspaces.{name}") for name in names)
    except ImportError:
        raise Refused("python -m sweep.dashboard", "needs: pip install wandb-workspaces") from None
    return workspaces, reports, expr


# --- what they show ----------------------------------------------------------------------------------------------


def workspace(analysis: Analysis, entity: str, project: str) -> Any:
    """The workspace, of wandb-workspaces: its runs are the sweep's, the best first, with their numbers as columns."""
    workspaces, _, expr = packages()
    sections = [
        workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in panels_of(analysis).items()
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


def report(analysis: Analysis, entity: str, project: str, runs_entity: str | None = None) -> Any:
    """The report, of wandb-workspaces: what to use and why, in the words of report.md, and the same panels."""
    _, reports, expr = packages()
    runs = reports.Runset(
        entity=entity if runs_entity is None else runs_entity,
        project=project,
        name=analysis.sweep.name,
        filters=expr.And(expr.Metric("Group") == analysis.sweep.name),
        order=[reports.OrderBy(reports.SummaryMetric("quality"), ascending=False)],
    )
    blocks = [reports.H1("What to use"), reports.P(analysis.ranking.text)]
    said = [*analysis.ranking.notes, *(each.text for each in analysis.observations)]
    if analysis.test is not None:
        said.insert(0, analysis.test.text)
    if said:
        blocks.append(reports.UnorderedList(said))
    for name, panels in panels_of(analysis).items():
        blocks += [reports.H2(name), reports.PanelGrid(runsets=[runs], panels=laid_out(panels), hide_run_sets=True)]
    title = f"LoRA sweep {analysis.sweep.name}"
    return reports.Report(project=project, entity=entity, title=title, blocks=blocks, width="fluid")


def panels_of(analysis: Analysis) -> dict[str, list[Any]]:
    """The sections with their panels, as far as the sweep has something to show in them."""
    _, reports, _ = packages()

    def bars(title: str, metric: str) -> Any:
        return reports.BarPlot(title=title, metrics=[metric], max_runs_to_show=MAX_RUNS, max_bars_to_show=MAX_RUNS)

    def lines(title: str, metric: str) -> Any:
        return reports.LinePlot(title=title, x="Step", y=[metric], max_runs_to_show=MAX_RUNS)

    def table(key: str) -> Any:
        return reports.WeavePanelSummaryTable(table_name=key)

    quality = reports.SummaryMetric("quality")
    scatters = [
        reports.ScatterPlot(title=f"Quality against {words}", x=reports.SummaryMetric(cost), y=quality)
        for cost, words in COSTS.items()
    ]
    effects = [
        reports.CustomChart(
            query={"summaryTable": {"tableKey": f"{chart.key}_table"}},
            chart_name="wandb/bar/v0",  # wandb.plot.bar's
            chart_fields={"label": chart.columns[0], "value": chart.columns[1]},
            chart_strings={"title": chart.title},
        )
        for chart in make_charts(write_page_data(analysis)[0])
        if chart.kind == "bar"
    ]
    sections = {
        "Ranking": [bars("Quality (0-100)", "quality"), table("ranking")],
        "Quality against cost": scatters,
        "What each setting changes": effects,
        "Loss": [lines("Training loss", "train/loss"), bars("Validation loss", "validation_loss")],
        "Memory and time": [bars("Peak memory (bytes)", "peak_memory_bytes"), bars("Training (s)", "train_seconds")],
        "Texts side by side": [table("side_by_side")],
    }
    return {name: panels for name, panels in sections.items() if panels}


def laid_out(panels: list[Any]) -> list[Any]:
    """The panels in rows of two; one alone takes the whole width."""
    _, reports, _ = packages()
    width = 2 * WIDTH if len(panels) == 1 else WIDTH
    for place, panel in enumerate(panels):
        panel.layout = reports.Layout(x=place % 2 * WIDTH, y=place // 2 * HEIGHT, w=width, h=HEIGHT)
    return panels


if __name__ == "__main__":
    sys.exit(main())
