"""report.html: one page that needs no network. Files beside it hold only the texts that do not fit into it.

This module prepares the values of the template and puts styles, scripts and data into the page. Every text reaches the
markup through Jinja's autoescape, and the scripts through JSON. Only the files in ``page/`` are marked safe; the page's
Content-Security-Policy names their hashes, so that no other style takes effect and no other script runs.
"""

import base64
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_sweep.runs.files import trial_folder
from sweep.report.analysis.analyse import Analysis
from sweep.report.analysis.configurations import OBJECTIVE, Number
from sweep.report.analysis.load import list_metrics, score_references
from sweep.report.analysis.overview import list_differences, list_facts, list_provenance, name_scorer
from sweep.report.analysis.ranking import count_statuses
from sweep.report.analysis.rows import ReportRow
from sweep.report.analysis.texts import dump_script_json
from sweep.report.formats.cells import (
    choose_tone,
    describe_reason,
    describe_status,
    explain_metric,
    format_cell,
    format_interval,
    format_metric,
    format_modules,
)
from sweep.report.formats.commands import write_merge_script, write_train_command
from sweep.report.formats.comparison_table import HEADERS, LEGEND, list_comparisons
from sweep.report.formats.summary import list_summary_columns
from sweep.text import escape_controls, format_count, format_millions, format_setting

FOLDER = Path(__file__).parents[1] / "page"
STYLES = ("page.css", "texts.css")
LIBRARY = "echarts/echarts.min.js"
SCRIPTS = (
    "page.js",
    "table.js",
    "charts.js",
    "pareto.js",
    "effects.js",
    "losses.js",
    "parallel.js",
    "timeline.js",
    "words.js",
    "texts.js",
    "blind.js",
)
MAX_LOG_LINES, MAX_LOG_BYTES = 30, 4000  # of the end of a failed trial's log
BAR_STEP = 5  # points of quality: the bars of the table begin and end at a multiple of it
Json = dict[str, object]
Range = tuple[int, int]  # (least, most) quality of the bars


def render_page(context: Mapping[str, object], data: Mapping[str, object]) -> str:
    """Render the page.

    Args:
        context: the values of the template, from :func:`make_context`.
        data: what the page's scripts read, from :func:`sweep.report.formats.page_data.write_page_data`. If it names
            shards, the policy lets the scripts load further scripts from files beside the page.
    """
    css = "".join(read_page_file(name) for name in STYLES) + write_bar_classes()
    scripts = [read_page_file(LIBRARY), "".join(read_page_file(name) for name in SCRIPTS)]
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja").render(
        css=Markup(css),
        scripts=[Markup(script) for script in scripts],
        policy=write_policy(css, scripts, bool(data["shards"])),
        data=Markup(dump_script_json(data)),
        **context,
    )


def write_bar_classes() -> str:
    """CSS classes x0 to x100 and w0 to w100 for a bar's position and length; style attributes need 'unsafe-inline'."""
    return "".join(f".w{n}{{width:{n}%}}.x{n}{{left:{n}%}}" for n in range(101))


def write_policy(css: str, scripts: list[str], has_shards: bool) -> str:
    """The page's Content-Security-Policy."""
    allowed = [hash_source(script) for script in scripts] + ["'strict-dynamic'"] * has_shards
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(allowed),
        "style-src": hash_source(css),
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def read_page_file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def hash_source(text: str) -> str:
    """The hash by which the policy names a style or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def make_context(analysis: Analysis) -> Json:
    """The values that page.html.jinja reads. They are texts unless a comment says otherwise; lists may be empty."""
    sweep, ranking, rows = analysis.sweep, analysis.ranking, analysis.rows.trials
    columns, names, scale = list_summary_columns(analysis), list_metrics(sweep), score_references(sweep)
    bar_range = find_bar_range(analysis.rows.configurations)
    lines = [(item.kind, item.text) for item in analysis.observations]
    return {
        "name": escape_controls(sweep.name),
        "command": escape_controls(sweep.command),
        "recommendation": ranking.choice,
        "evidence": [text for text in (ranking.rivals, analysis.test.text if analysis.test else "") if text],
        "warnings": [*ranking.notes, *(text for kind, text in lines if kind == "warning")],
        "observations": [text for kind, text in lines if kind != "warning"],
        "tiles": list_tiles(analysis, scale.get(OBJECTIVE)),  # (title, figure, words)
        "columns": columns,  # ReportColumn
        "bar_range": bar_range,  # (least, most): the quality at which a row's bar begins and ends, whole numbers
        "rows": [
            make_summary_row(row, [column.key for column in columns], bar_range) for row in analysis.rows.configurations
        ],
        "metrics": [(name, explain_metric(name, name_scorer(sweep))) for name in names],
        "metric_rows": [
            {**identify_row(row), "cells": [format_metric(name, row.metrics.get(name)) for name in names]}
            for row in rows
        ],
        "reference_cells": [format_metric(name, scale.get(name)) for name in names] if scale else [],
        "comparison_headers": HEADERS,
        "comparison_legend": LEGEND,
        "comparisons": [{**identify_row(row), "cells": cells} for row, cells in list_comparisons(analysis)],
        "differences": list_differences(sweep),
        "failures": [
            {**identify_row(row), "reason": describe_reason(row), "log": read_log_tail(analysis.runs, row)}
            for row in rows
            if row.is_failed
        ],
        "facts": list_facts(sweep),
        "provenance": list_provenance(sweep),
        "commands": list_commands(analysis),
        "ids": [
            {
                **identify_row(row),
                "folder": f"{row.trial_id}/evals/{row.eval_id}",
                "again": write_train_command(sweep, row),
            }
            for row in rows
        ],
    }


def identify_row(row: ReportRow) -> Json:
    """The values by which all parts of the page show a row. ``tone`` is a class in page.css."""
    return {
        "mark": row.mark,
        "label": escape_controls(row.label),
        "is_baseline": row.is_baseline,
        "status": describe_status(row),
        "tone": choose_tone(row),
    }


def make_summary_row(row: ReportRow, keys: list[str], bar_range: Range) -> Json:
    baseline = row.baseline.summary.objective if row.baseline else None
    return {
        **identify_row(row),
        "is_best": row.is_recommended,
        "tied": bool(row.tied_with_best),
        "cells": {key: format_cell(row, key) for key in keys},
        "sorts": {key: write_sort_value(row.value(key)) for key in keys},  # to sort a column by; "" comes last
        "targets": format_setting(row.targets),
        "modules": "" if isinstance(row.targets, list) else format_modules(row.target_modules),
        "millions": format_millions(row.trainable_params) if row.trainable_params else "",
        "trainable": format_count(row.trainable_params),
        "quality": format_metric(OBJECTIVE, row.objective),
        "interval": format_interval(OBJECTIVE, row.quality_ci_low, row.quality_ci_high),
        "low": place_on_bar(row.quality_ci_low, bar_range),
        "high": place_on_bar(row.quality_ci_high, bar_range),
        "dot": place_on_bar(row.objective, bar_range),
        "tick": place_on_bar(baseline, bar_range),
    }


def write_sort_value(value: object) -> str:
    """A number with all digits; any other setting as it is shown; "" if unknown."""
    return repr(value) if isinstance(value, int | float) else "" if value is None else format_setting(value)


def find_bar_range(rows: list[ReportRow]) -> Range:
    """The narrowest range of multiples of BAR_STEP that holds every interval, so that bars show small differences."""
    columns = [(row.objective, row.quality_ci_low, row.quality_ci_high) for row in rows]
    values = [value for cells in columns for value in cells if value is not None]
    if not values:
        return 0, 100
    least, most = math.floor(min(values) / BAR_STEP) * BAR_STEP, math.ceil(max(values) / BAR_STEP) * BAR_STEP
    return least, max(most, least + BAR_STEP)


def place_on_bar(quality: Number | None, bar_range: Range) -> int | None:
    """The position in whole percent of the bar's length; None where the quality is unknown."""
    least, most = bar_range
    return None if quality is None else round(min(max((quality - least) / (most - least), 0), 1) * 100)


def list_tiles(analysis: Analysis, reference: Number | None) -> list[tuple[str, str, str]]:
    """The tiles at the top of the page, each (title, figure, words)."""
    row, tiles = analysis.recommended, []
    if row is not None:
        title = "Recommended" if row.verdict == "high" else "Cheapest of the tied rows"
        tiles.append((title, format_metric(OBJECTIVE, row.objective), escape_controls(row.label)))
    if analysis.ranking.baseline is not None:
        baseline = analysis.ranking.baseline.summary
        words = f"{escape_controls(baseline.label)}, untuned"
        tiles.append(("Its baseline", format_metric(OBJECTIVE, baseline.objective), words))
    if reference is not None:
        tiles.append(("The reference texts", format_metric(OBJECTIVE, reference), "the top of the scale"))
    trials = [row for row in analysis.rows.trials if not row.is_baseline]
    incomplete = [row for row in trials if not row.is_complete]
    words = count_statuses(incomplete) or "none failed"
    tiles.append(("Trials complete", f"{len(trials) - len(incomplete)} of {len(trials)}", words))
    return tiles


def read_log_tail(runs: Path, row: ReportRow) -> str:
    """The last lines of a trial's log, without paths of this machine; "" if there is no log."""
    try:
        with trial_folder(runs, row.trial_id).log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - MAX_LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").replace(str(runs.resolve()), "runs").splitlines()
    except OSError:
        return ""
    return escape_controls("\n".join(lines[-MAX_LOG_LINES:])).strip()


def list_commands(analysis: Analysis) -> list[dict[str, str]]:
    """The commands that a reader may want next, each with a title."""
    row = analysis.recommended_trial
    if row is None:
        return []
    again = write_train_command(analysis.sweep, row)
    commands = [{"title": f"To train row {row.mark} again", "command": again}] if again else []
    return [*commands, {"title": f"To use row {row.mark}", "command": write_merge_script(row)}]
