"""report.json: everything that the report shows, with all digits of the numbers.

The generated texts are not in it; they are in generations.jsonl of each trial.
"""

import dataclasses
import json
import math

from sweep.report.analysis.analyse import Analysis
from sweep.report.analysis.comparison import Standing
from sweep.report.analysis.configurations import OBJECTIVE
from sweep.report.analysis.effects import FactorPair, MainEffect
from sweep.report.analysis.overview import list_facts, list_provenance
from sweep.report.formats.summary import list_csv_keys
from sweep.statistics.estimates import Estimate

FORMAT = "lora-sweep report 1"
Json = dict[str, object]


def write_json_report(analysis: Analysis) -> str:
    """The content of the file. Unknown values are null; the rows have the columns of report.csv."""
    sweep, ranking, test = analysis.sweep, analysis.ranking, analysis.test
    content = {
        "format": FORMAT,
        "name": sweep.name,
        "command": sweep.command,
        "started": sweep.started,
        "varied": sweep.varied,
        "objective": OBJECTIVE,
        "recommended": ranking.recommended and ranking.recommended.summary.mark,
        "tied": [standing.summary.mark for standing in ranking.tied],
        "text": ranking.text,
        "notes": ranking.notes,
        "observations": [dataclasses.asdict(observation) for observation in analysis.observations],
        "ranking": [standing_to_json(standing) for standing in analysis.standings],
        "effects": [effect_to_json(effect) for effect in analysis.effects],
        "interactions": [interaction_to_json(pair) for pair in analysis.pairs],
        "test": test and {"mark": test.mark, **standing_to_json(test.standing)},
        "votes": {row.mark: dataclasses.asdict(tally) for row, tally in analysis.tallies},
        "rows": rows_to_json(analysis),
        "facts": dict([*list_facts(sweep), *list_provenance(sweep)]),
    }
    return json.dumps(drop_infinite(content), indent=1, allow_nan=False) + "\n"  # ASCII: no control character hides


def rows_to_json(analysis: Analysis) -> list[Json]:
    """For each trial, its mark and the columns of report.csv."""
    keys = list_csv_keys(analysis)
    return [{"mark": row.mark, **{key: row.value(key) for key in keys}} for row in analysis.rows.trials]


def drop_infinite(item: object) -> object:
    """A copy of ``item`` with null for every number that is not finite, because JSON has only finite numbers."""
    if isinstance(item, dict):
        return {str(key): drop_infinite(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [drop_infinite(value) for value in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def standing_to_json(standing: Standing) -> Json:
    """Every number of a standing, with the mark and the label of its configuration."""
    return {
        "mark": standing.summary.mark,
        "label": standing.summary.label,
        "quality": estimate_to_json(standing.quality),
        "prompts": standing.prompts,
        "seeds": standing.seeds,
        "prompt_noise": standing.prompt_noise,
        "seed_noise": standing.seed_noise,
        "versus_baseline": estimate_to_json(standing.versus_baseline),
        "versus_best": estimate_to_json(standing.versus_best),
        "against_baseline": standing.wins_over_baseline,
        "against_best": standing.wins_over_best,
        "tied": standing.is_tied,
        "verdict": standing.verdict,
    }


def estimate_to_json(estimate: Estimate | None) -> Json | None:
    return None if estimate is None else dataclasses.asdict(estimate)


def effect_to_json(effect: MainEffect) -> Json:
    lines = zip(effect.factor.levels, effect.levels, [None, *effect.contrasts], strict=True)
    levels = [
        {"level": level, "mean": estimate_to_json(mean), "contrast": estimate_to_json(contrast)}
        for level, mean, contrast in lines
    ]
    return {"factor": effect.factor.key, "blocks": effect.blocks, "levels": levels}


def interaction_to_json(pair: FactorPair) -> Json:
    first, second, interaction = pair.first, pair.second, pair.interaction
    cells = [
        {"first": first_level, "second": second_level, "mean": estimate_to_json(mean)}
        for first_level, means in zip(first.levels, interaction.cells, strict=True)
        for second_level, mean in zip(second.levels, means, strict=True)
    ]
    return {
        "first": first.key,
        "second": second.key,
        "visible": interaction.is_visible,
        "difference": estimate_to_json(interaction.difference),
        "text": pair.text,
        "cells": cells,
    }
