"""report.html: one page that needs no network and no file beside it but the texts that are too many for it.

Owns what the template is given, and how styles, scripts and data get into the page. Every text reaches the markup
through Jinja's autoescape and the scripts through JSON; what is marked safe is our own files and the library's, whose
hashes the page's Content-Security-Policy names, so that no other style and no other script can run.
"""

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_sweep.runs.files import trial_folder
from sweep.report.analysis import overview
from sweep.report.analysis.analysis import Analysis
from sweep.report.analysis.comparison import OBJECTIVE, Standing, baseline_of
from sweep.report.analysis.load import Row, metric_names, references
from sweep.report.analysis.ranking import failures, statuses
from sweep.report.formats import cells
from sweep.report.formats.commands import reproduce, use
from sweep.report.formats.comparison_table import HEADERS, LEGEND, comparisons
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
LOG_LINES, LOG_BYTES = 30, 4000  # of the end of a failed trial's log
NUMERIC = (
    "r",
    "bits",
    "eval_bits",
    "alpha",
    "dropout",
    "learning_rate",
    "quality",
    "delta_baseline",
    "delta_best",
    "validation_loss",
    "neutral_loss",
    "forgetting",
    "trainable_params",
    "train_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "adapter_bytes",
)


def page_text(context: dict[str, Any], data: dict[str, Any]) -> str:
    """The page of what the template reads (:func:`context` lists it) and of what its scripts read.

    Args:
        data: JSON that charts, texts and the blind comparison are made from. Where it names shards, scripts of ours may
            load further ones, from beside the page.
    """
    css, scripts = "".join(_read(name) for name in STYLES) + steps(), [_read(LIBRARY), "".join(map(_read, SCRIPTS))]
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
        policy=policy(css, scripts, bool(data["shards"])),
        data=Markup(as_json(data)),
        **context,
    )


def steps() -> str:
    """A bar's place and length are classes (x0 to x100, w0 to w100): a style attribute would need 'unsafe-inline'."""
    return "".join(f".w{n}{{width:{n}%}}.x{n}{{left:{n}%}}" for n in range(101))


def policy(css: str, scripts: list[str], has_shards: bool) -> str:
    """The page's Content-Security-Policy."""
    allowed = [_source(script) for script in scripts] + ["'strict-dynamic'"] * has_shards
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(allowed),
        "style-src": _source(css),
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def as_json(data: dict[str, Any]) -> str:
    """JSON that ends no script element and opens no comment, whatever it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def context(analysis: Analysis) -> dict[str, Any]:
    """What page.html.jinja reads. All of it is text but where a comment says otherwise; lists may be empty."""
    sweep, ranking = analysis.sweep, analysis.ranking
    columns, names, scale = cells.summary_columns(sweep), metric_names(sweep), references(sweep)
    rows = [entry.row for entry in sweep.entries]
    drawn = drawn_range(rows)
    said = [(each.kind, each.text) for each in analysis.observations]
    return {
        "name": escape_controls(sweep.name),
        "command": escape_controls(sweep.command),
        "recommendation": ranking.choice,
        "evidence": [text for text in (ranking.among, analysis.test.text if analysis.test else "") if text],
        "warnings": [*ranking.notes, *(text for kind, text in said if kind == "warning")],
        "observations": [text for kind, text in said if kind != "warning"],
        "tiles": tiles(analysis, scale.get(OBJECTIVE)),  # (title, figure, words)
        "columns": columns,  # (key, header)
        "numeric": NUMERIC,  # keys whose column is set to the right
        "drawn": drawn,  # (least, most): the quality that a row's bar begins and ends with, whole numbers
        "rows": [
            summary_row(analysis, standing, [key for key, _ in columns], drawn) for standing in analysis.standings
        ],
        "metrics": [(name, cells.metric_help(name, overview.scorer(sweep))) for name in names],
        "metric_rows": [
            {**named(row), "cells": [cells.metric(name, row.get(name)) for name in names]} for row in sweep.rows
        ],
        "reference_cells": [cells.metric(name, scale.get(name)) for name in names] if scale else [],
        "comparison_headers": HEADERS,
        "comparison_legend": LEGEND,
        "comparisons": [{**named(each.row), "cells": cells} for each, cells in comparisons(analysis)],
        "differences": overview.differences(sweep),
        "failures": [
            {**named(row), "reason": cells.reason(row), "log": log_tail(analysis.runs, row)} for row in failures(sweep)
        ],
        "facts": overview.facts(sweep),
        "provenance": overview.provenance(sweep),
        "commands": commands(analysis),
        "ids": [
            {**named(row), "folder": f"{row['trial_id']}/evals/{row['eval_id']}", "again": reproduce(sweep, row) or ""}
            for row in sweep.rows
        ],
    }


def named(row: Row) -> dict[str, Any]:
    """How every part of the page names a row. ``tone`` is a class of page.css."""
    return {
        "mark": row["mark"],
        "label": escape_controls(row["label"]),
        "is_baseline": row["kind"] == "baseline",
        "status": cells.status(row),
        "tone": cells.tone(row),
    }


def summary_row(analysis: Analysis, standing: Standing, keys: list[str], drawn: tuple[int, int]) -> dict[str, Any]:
    row = standing.row
    trial = analysis.sweep.rows[standing.entry.places[0]]
    baseline = baseline_of(analysis.sweep, trial) if row["kind"] == "trial" else None
    low, high, millions = row["quality_ci_low"], row["quality_ci_high"], row["trainable_params"]
    return {
        **named(row),
        "is_best": standing is analysis.ranking.recommended,
        "tied": bool(standing.tied),
        "cells": {key: cells.cell(row, key) for key in keys},
        "sorts": {key: sort_value(row.get(key)) for key in keys},  # what a column is sorted by; "" comes last
        "targets": format_setting(row.get("targets")),
        "modules": "" if isinstance(row.get("targets"), list) else cells.names(row.get("target_modules")),
        "millions": format_millions(millions) if millions else "",
        "trainable": format_count(millions),
        "quality": cells.metric(OBJECTIVE, row.get(OBJECTIVE)),
        "interval": cells.interval(OBJECTIVE, low, high),
        "low": percent(low, drawn),  # places on the bar, in whole percent of its length; None where unknown
        "high": percent(high, drawn),
        "dot": percent(row.get(OBJECTIVE), drawn),
        "tick": None if baseline is None else percent(baseline[OBJECTIVE], drawn),
    }


def sort_value(value: Any) -> str:
    """A number in full, any other setting as it is shown."""
    return repr(value) if isinstance(value, int | float) else "" if value is None else format_setting(value)


def drawn_range(rows: list[Row]) -> tuple[int, int]:
    """Fives around every quality and interval, so that the bars show differences where they are small."""
    keys = (OBJECTIVE, "quality_ci_low", "quality_ci_high")
    values = [row[key] for row in rows for key in keys if row.get(key) is not None]
    if not values:
        return 0, 100
    least, most = math.floor(min(values) / 5) * 5, math.ceil(max(values) / 5) * 5
    return least, max(most, least + 5)


def percent(quality: float | int | None, drawn: tuple[int, int]) -> int | None:
    least, most = drawn
    return None if quality is None else round(min(max((quality - least) / (most - least), 0), 1) * 100)


def tiles(analysis: Analysis, reference: float | int | None) -> list[tuple[str, str, str]]:
    """(name, number, words) of the figures at the top."""
    chosen, baseline, found = analysis.ranking.recommended, analysis.ranking.baseline, []
    if chosen is not None:
        title = "Recommended" if chosen.verdict == "high" else "Cheapest of the tied"
        found.append((title, cells.metric(OBJECTIVE, chosen.row[OBJECTIVE]), escape_controls(chosen.row["label"])))
    if baseline is not None:
        words = f"{escape_controls(baseline['label'])}, untuned"
        found.append(("Its baseline", cells.metric(OBJECTIVE, baseline[OBJECTIVE]), words))
    if reference is not None:
        found.append(("The references themselves", cells.metric(OBJECTIVE, reference), "the top of the scale"))
    trials = [row for row in analysis.sweep.rows if row["kind"] == "trial"]
    undone = [row for row in trials if not cells.is_complete(row)]
    words = statuses(undone) or "none failed"
    found.append(("Trials complete", f"{len(trials) - len(undone)} of {len(trials)}", words))
    return found


def log_tail(runs: Path, row: Row) -> str:
    """The last lines of a trial's log, without the paths of this machine; "" where there is none."""
    try:
        with trial_folder(runs, row["trial_id"]).log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").replace(str(runs.resolve()), "runs").splitlines()
    except OSError:
        return ""
    return escape_controls("\n".join(lines[-LOG_LINES:])).strip()


def commands(analysis: Analysis) -> list[dict[str, str]]:
    """Those that a reader wants next: title, words and command."""
    chosen = analysis.ranking.recommended
    if chosen is None:
        return []
    row = analysis.sweep.rows[chosen.entry.places[0]]
    again = reproduce(analysis.sweep, row)
    found = [{"title": f"Row {row['mark']} again", "words": "", "command": again}] if again else []
    return [*found, {"title": f"To use row {row['mark']}", "words": "", "command": use(row)}]
