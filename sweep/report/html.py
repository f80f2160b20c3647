"""report.html: one page that needs no network, no script and no file beside it.

Owns what the template is given. Every text reaches the page through Jinja's autoescape; the one thing marked safe is
page.css, whose hash the page's Content-Security-Policy names, so that no other style and no script can run.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_sweep.results import STATUSES
from sweep.report import overview, ranking, show
from sweep.report.table import PENDING, Row, Sweep, is_other, metric_names, references
from sweep.report.texts import shown_prompts

FOLDER = Path(__file__).parent
NUMERIC = (
    "r",
    "bits",
    "quality",
    "validation_loss",
    "trainable_params",
    "train_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "adapter_bytes",
)


def html_text(sweep: Sweep) -> str:
    """The whole page."""
    # A bar's length is a class (w0 to w100), for a style attribute would need 'unsafe-inline'.
    steps = "".join(f".w{n}{{width:{n}%}}.x{n}{{left:{n}%}}" for n in range(101))
    css = (FOLDER / "page.css").read_text(encoding="utf-8") + steps
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja").render(css=Markup(css), css_hash=digest, **context(sweep))


def context(sweep: Sweep) -> dict[str, Any]:
    """What page.html.jinja reads."""
    best = ranking.best(sweep)
    columns = show.summary_columns(sweep)
    names = metric_names(sweep)
    scale = references(sweep)
    return {
        "name": show.visible(sweep.name),
        "command": show.visible(sweep.command),
        "best": best,
        "tiles": _tiles(sweep, best, scale.get("quality")),
        "facts": overview.facts(sweep),
        "provenance": overview.provenance(sweep),
        "differences": overview.differences(sweep),
        "failures": [{**_name(row), "reason": show.reason(row)} for row in ranking.failures(sweep)],
        "columns": columns,
        "rows": [_summary_row(sweep, row, best, [key for key, _ in columns]) for row in sweep.rows],
        "metrics": [(name, show.metric_help(name)) for name in names],
        "metric_rows": [
            {**_name(row), "cells": [show.metric(name, row.get(name)) for name in names]} for row in sweep.rows
        ],
        "reference_cells": [show.metric(name, scale.get(name)) for name in names] if scale else [],
        "prompts": [
            {
                "prompt": prompt,
                "written": [{**_name(each.row), "text": each.text, "notes": each.notes} for each in prompt.written],
                "missing": [_name(row) for row in prompt.missing],
                "elsewhere": [row["mark"] for row in prompt.elsewhere],
            }
            for prompt in shown_prompts(sweep)
        ],
        "ids": [{**_name(row), "trial_id": row["trial_id"], "eval_id": row["eval_id"]} for row in sweep.rows],
        "numeric": NUMERIC,
    }


def _name(row: Row) -> dict[str, Any]:
    """How every part of the page names a row. ``tone`` is a class of page.css."""
    status = show.setting(row["status"])
    tone = {"complete": "good", PENDING: "wait"}.get(status, "bad" if status in STATUSES else "wait")
    tone = "wait" if tone == "good" and is_other(row) else tone
    return {
        "mark": row["mark"],
        "label": show.visible(row["label"]),
        "is_baseline": row["kind"] == "baseline",
        "status": show.status(row),
        "tone": tone,
    }


def _summary_row(sweep: Sweep, row: Row, best: ranking.Best, keys: list[str]) -> dict[str, Any]:
    baseline = ranking.baseline_of(sweep, row)
    return {
        **_name(row),
        "is_best": any(row is other for other in best.rows),
        "cells": {key: show.cell(row, key) for key in keys},
        "targets": show.setting(row.get("targets")),
        "modules": "" if isinstance(row.get("targets"), list) else show.names(row.get("target_modules")),
        "millions": show.millions(row["trainable_params"]) if row["trainable_params"] else "",
        "trainable": show.count(row["trainable_params"]),
        "bar": _percent(row.get("quality")),
        "tick": None if baseline is None or row["kind"] == "baseline" else _percent(baseline["quality"]),
    }


def _tiles(sweep: Sweep, best: ranking.Best, reference: float | int | None) -> list[tuple[str, str, str]]:
    """(name, number, words) of the figures at the top."""
    tiles = []
    if best.rows:
        labels = " and ".join(show.visible(row["label"]) for row in best.rows)
        tiles.append(("Highest mean quality", show.metric("quality", best.rows[0]["quality"]), labels))
    if best.baseline is not None:
        words = f"{show.visible(best.baseline['label'])}, untuned"
        tiles.append(("Its baseline", show.metric("quality", best.baseline["quality"]), words))
    if reference is not None:
        tiles.append(("The references themselves", show.metric("quality", reference), "the top of the scale"))
    trials = [row for row in sweep.rows if row["kind"] == "trial"]
    undone = [row for row in trials if not show.is_complete(row)]
    words = ranking.statuses(undone) or "none failed"
    tiles.append(("Trials complete", f"{len(trials) - len(undone)} of {len(trials)}", words))
    return tiles


def _percent(quality: float | int | None) -> int | None:
    return None if quality is None else round(min(max(quality, 0), 100))
