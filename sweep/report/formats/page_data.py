"""What the page's scripts read: every number that a chart draws, and the texts.

Owns the shape of that JSON (``page/page.js`` reads it). An element of ``rows`` is an entry of the ranking.
"""

from datetime import UTC, datetime
from typing import Any

from sweep.report.analysis.analysis import Analysis, entry_keys
from sweep.report.analysis.comparison import OBJECTIVE, Standing, baseline_of
from sweep.report.analysis.effects import Factor, Joint, MainEffect, factors
from sweep.report.analysis.load import number
from sweep.report.analysis.texts import page_texts
from sweep.report.analysis.votes import Key, page_votes
from sweep.report.formats.cells import status, tone
from sweep.statistics.estimates import Estimate
from sweep.text import escape_controls, format_setting

CURVE_POINTS = 200  # of one trial
ALL_POINTS = 40_000  # of all: 0.4 MB
Json = dict[str, Any]


def page_data(analysis: Analysis) -> tuple[Json, dict[str, str]]:
    """The data, and the files of texts beside the page: name -> content."""
    sweep = analysis.sweep
    found, keys = factors(sweep, analysis.ranking.compared), entry_keys(sweep)
    written = page_texts(sweep, {str(entry.row["mark"]): entry.places for entry in sweep.entries})
    data = {
        "name": escape_controls(sweep.name),
        "objective": OBJECTIVE,
        "rows": [row_data(analysis, standing, found, keys) for standing in analysis.standings],
        "factors": [
            {"key": each.key, "name": each.name, "levels": each.levels, "numeric": each.is_numeric} for each in found
        ],
        "effects": [effect_data(each) for each in analysis.effects],
        "interactions": [interaction_data(each) for each in analysis.joint],
        "curves": curves(analysis),
        "timeline": timeline(analysis),
        "prompts": written.prompts,
        "texts": written.texts,
        "shards": written.shards,
        "votes": page_votes(analysis.votes, analysis.vote_notes, keys),
    }
    return data, written.files


def row_data(analysis: Analysis, standing: Standing, found: list[Factor], keys: dict[str, list[Key]]) -> Json:
    row, ranking = standing.row, analysis.ranking
    numbers = ("quality", "trainable_params", "train_seconds", "peak_memory_bytes", "validation_loss")
    baseline = baseline_of(analysis.sweep, analysis.sweep.rows[standing.entry.places[0]])
    return {
        "mark": row["mark"],
        "label": escape_controls(str(row["label"])),
        "kind": row["kind"],
        "status": status(row),
        "tone": tone(row),
        "values": {each.key: plain(row.get(each.key)) for each in found} if row["kind"] == "trial" else {},
        **{key: row.get(key) for key in numbers},
        "low": row["quality_ci_low"],
        "high": row["quality_ci_high"],
        "tied": standing.tied,
        "verdict": standing.verdict,
        "recommended": standing is ranking.recommended,
        "baseline": baseline["mark"] if baseline and row["kind"] == "trial" else None,
        "trial_ids": [list(key) for key in keys[str(row["mark"])]],
    }


def plain(value: Any) -> Any:
    """A setting as a number or as the text that people read."""
    return format_setting(value) if isinstance(value, bool) or number(value) is None else value


def span(estimate: Estimate) -> Json:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def effect_data(effect: MainEffect) -> Json:
    levels = effect.factor.levels
    return {
        "factor": effect.factor.key,
        "contexts": effect.blocks,
        "levels": [{"level": name, **span(mean)} for name, mean in zip(levels, effect.levels, strict=True)],
        "contrasts": [
            {
                "level": name,
                "against": levels[0],
                "value": each.value,
                "low": each.low,
                "high": each.high,
                "shown": each.side != "undecided",
            }
            for name, each in zip(levels[1:], effect.contrasts, strict=True)
        ],
    }


def interaction_data(joint: Joint) -> Json:
    first, second, found = joint.first, joint.second, joint.found
    cells = [
        {"a": one, "b": two, **span(cell)}
        for one, line in zip(first.levels, found.cells, strict=True)
        for two, cell in zip(second.levels, line, strict=True)
    ]
    text = f"An interaction is visible: {joint.text}." if found.is_visible else "No interaction is visible."
    return {"a": first.key, "b": second.key, "visible": found.is_visible, "text": text, "cells": cells}


def curves(analysis: Analysis) -> list[Json]:
    """Each trial's loss at its steps, evenly thinned; each entry's trials under marks of their own."""
    sweep, found = analysis.sweep, []
    trials = [place for place, row in enumerate(sweep.rows) if row["kind"] == "trial"]
    marks = {place: str(entry.row["mark"]) for entry in sweep.entries for place in entry.places}
    most = max(20, min(CURVE_POINTS, ALL_POINTS // max(len(trials), 1)))
    for place in trials:
        points = [(number(line.get("step")), number(line.get("loss"))) for line in sweep.results[place].losses]
        known = [(step, loss) for step, loss in points if step is not None and loss is not None]
        if known:
            every = max(1, -(-len(known) // most))
            kept = known[::every] if known[::every][-1] == known[-1] else [*known[::every], known[-1]]
            losses = [float(f"{loss:.5g}") for _, loss in kept]
            mark = sweep.rows[place]["mark"]
            found.append({"mark": mark, "entry": marks[place], "steps": [step for step, _ in kept], "losses": losses})
    return found


def timeline(analysis: Analysis) -> Json:
    """When each row was trained and evaluated, in seconds since the first of all began."""
    spans = []
    for row, result in zip(analysis.sweep.rows, analysis.sweep.results, strict=True):
        for phase, part in (("training", result.training), ("evaluation", result.evaluation)):
            if phase == "training" and row["kind"] == "baseline":
                continue
            started, finished = (moment(time) for time in (part.provenance.started, part.provenance.finished))
            if started is not None and finished is not None:
                status = escape_controls(str(part.status))
                spans.append({"mark": row["mark"], "phase": phase, "status": status, "at": started, "end": finished})
    if not spans:
        return {"origin": None, "spans": []}
    first = min(each["at"] for each in spans)
    for each in spans:
        each["start"] = round(each.pop("at") - first, 3)
        each["end"] = round(each["end"] - first, 3)
    return {"origin": datetime.fromtimestamp(first, UTC).isoformat(timespec="seconds"), "spans": spans}


def moment(text: Any) -> float | None:
    """Seconds since 1970 of an ISO time; a time without a zone is read as UTC."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
