"""The data of the page's scripts: every number that a chart draws, and the texts.

The functions define the keys of the JSON that ``page/*.js`` read. An element of ``rows`` is a configuration.
"""

from datetime import UTC, datetime

from lora_sweep.runs.records import EvaluationResult, TrialResult, read_number
from sweep.report.analysis.analyse import Analysis, list_keys
from sweep.report.analysis.configurations import OBJECTIVE, Key, Number, Trial
from sweep.report.analysis.effects import Factor, FactorPair, MainEffect
from sweep.report.analysis.rows import ReportRow
from sweep.report.analysis.texts import collect_page_texts
from sweep.report.analysis.votes import write_page_votes
from sweep.report.formats.cells import choose_tone, describe_status
from sweep.statistics.estimates import Estimate
from sweep.text import escape_controls, format_setting

MAX_CURVE_POINTS = 200  # of one trial
MAX_ALL_POINTS = 40_000  # of all trials: 0.4 MB
MIN_CURVE_POINTS = 20  # of one trial, also if there are very many trials
Json = dict[str, object]


def write_page_data(analysis: Analysis) -> tuple[Json, dict[str, str]]:
    """The data of the page, and the files with texts beside it: path -> content."""
    sweep = analysis.sweep
    keys, texts = list_keys(sweep), collect_page_texts(sweep)
    data: Json = {
        "name": escape_controls(sweep.name),
        "objective": OBJECTIVE,
        "rows": [row_to_json(row, analysis.factors, keys[row.mark]) for row in analysis.rows.configurations],
        "factors": [
            {"key": factor.key, "name": factor.name, "levels": factor.levels, "numeric": factor.is_numeric}
            for factor in analysis.factors
        ],
        "effects": [effect_to_json(effect) for effect in analysis.effects],
        "interactions": [interaction_to_json(pair) for pair in analysis.pairs],
        "curves": list_curves(analysis),
        "timeline": write_timeline(analysis),
        "prompts": texts.prompts,
        "texts": texts.texts,
        "shards": texts.shards,
        "votes": write_page_votes(analysis.votes, analysis.vote_notes, keys),
    }
    return data, texts.files


def row_to_json(row: ReportRow, factors: list[Factor], keys: list[Key]) -> Json:
    numbers = ("quality", "trainable_params", "train_seconds", "peak_memory_bytes", "validation_loss")
    return {
        "mark": row.mark,
        "label": escape_controls(row.label),
        "kind": row.kind,
        "status": describe_status(row),
        "tone": choose_tone(row),
        "values": {} if row.is_baseline else {item.key: write_setting(row.value(item.key)) for item in factors},
        **{key: row.value(key) for key in numbers},
        "low": row.quality_ci_low,
        "high": row.quality_ci_high,
        "tied": row.tied_with_best,
        "verdict": row.verdict,
        "recommended": row.is_recommended,
        "baseline": row.baseline.summary.mark if row.baseline else None,
        "trial_ids": [list(key) for key in keys],
    }


def write_setting(value: object) -> Number | str | None:
    """A setting as a number, or as the text that people read."""
    number = None if isinstance(value, bool) else read_number(value)
    return format_setting(value) if number is None else number


def estimate_to_json(estimate: Estimate) -> Json:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def effect_to_json(effect: MainEffect) -> Json:
    levels = effect.factor.levels
    return {
        "factor": effect.factor.key,
        "contexts": effect.blocks,
        "levels": [
            {"level": level, **estimate_to_json(mean)} for level, mean in zip(levels, effect.levels, strict=True)
        ],
        "contrasts": [
            {
                "level": level,
                "against": levels[0],
                "value": contrast.value,
                "low": contrast.low,
                "high": contrast.high,
                "shown": contrast.side != "undecided",
            }
            for level, contrast in zip(levels[1:], effect.contrasts, strict=True)
        ],
    }


def interaction_to_json(pair: FactorPair) -> Json:
    first, second, interaction = pair.first, pair.second, pair.interaction
    cells = [
        {"a": first_level, "b": second_level, **estimate_to_json(mean)}
        for first_level, means in zip(first.levels, interaction.cells, strict=True)
        for second_level, mean in zip(second.levels, means, strict=True)
    ]
    text = f"An interaction is visible: {pair.text}." if interaction.is_visible else "No interaction is visible."
    return {"a": first.key, "b": second.key, "visible": interaction.is_visible, "text": text, "cells": cells}


def list_curves(analysis: Analysis) -> list[Json]:
    """The training loss of each trial at its steps, thinned evenly; each seed of a configuration has a curve."""
    trials = [trial for trial in analysis.sweep.trials if not trial.summary.is_baseline]
    marks = {
        trial.summary.mark: configuration.summary.mark
        for configuration in analysis.sweep.configurations
        for trial in configuration.trials
    }
    limit = max(MIN_CURVE_POINTS, min(MAX_CURVE_POINTS, MAX_ALL_POINTS // max(len(trials), 1)))
    curves: list[Json] = []
    for trial in trials:
        points = thin_points(read_losses(trial), limit)
        if points:
            steps, losses = [step for step, _ in points], [float(f"{loss:.5g}") for _, loss in points]
            mark = trial.summary.mark
            curves.append({"mark": mark, "entry": marks[mark], "steps": steps, "losses": losses})
    return curves


def read_losses(trial: Trial) -> list[tuple[Number, Number]]:
    """(step, loss) of each line of losses.jsonl that has both."""
    points = []
    for line in trial.record.losses:
        step, loss = read_number(line.get("step")), read_number(line.get("loss"))
        if step is not None and loss is not None:
            points.append((step, loss))
    return points


def thin_points(points: list[tuple[Number, Number]], limit: int) -> list[tuple[Number, Number]]:
    """Every n-th point, so that at most about ``limit`` are left, and always the last point."""
    thinned = points[:: max(1, -(-len(points) // limit))]
    return thinned if thinned[-1:] == points[-1:] else [*thinned, points[-1]]


def write_timeline(analysis: Analysis) -> Json:
    """When each trial was trained and evaluated, in seconds since the first of them started."""
    spans: list[tuple[float, float, Json]] = []
    for trial in analysis.sweep.trials:
        steps: list[tuple[str, TrialResult | EvaluationResult]] = [("evaluation", trial.record.evaluation)]
        if not trial.summary.is_baseline:
            steps.insert(0, ("training", trial.record.training))
        for phase, step in steps:
            started, finished = parse_time(step.provenance.started), parse_time(step.provenance.finished)
            if started is not None and finished is not None:
                status = escape_controls(str(step.status))
                spans.append((started, finished, {"mark": trial.summary.mark, "phase": phase, "status": status}))
    if not spans:
        return {"origin": None, "spans": []}
    first = min(started for started, _, _ in spans)
    return {
        "origin": datetime.fromtimestamp(first, UTC).isoformat(timespec="seconds"),
        "spans": [
            {**span, "end": round(finished - first, 3), "start": round(started - first, 3)}
            for started, finished, span in spans
        ],
    }


def parse_time(text: str | None) -> float | None:
    """An ISO time as seconds since 1970; without a time zone it is read as UTC. None if the text is no time."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
