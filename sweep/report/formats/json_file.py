"""report.json: everything that the report says, numbers in full.

Texts are not in it: they stand in each trial's generations.jsonl.
"""

import dataclasses
import json
import math
from typing import Any

from sweep.report.analysis import overview
from sweep.report.analysis.analysis import Analysis
from sweep.report.analysis.comparison import OBJECTIVE, Standing
from sweep.report.analysis.effects import Joint, MainEffect
from sweep.report.analysis.load import columns

FORMAT = "lora-sweep report 1"


def json_text(analysis: Analysis) -> str:
    """The file. Unknown is null; the rows have report.csv's columns."""
    sweep, found = analysis.sweep, analysis.ranking
    names = columns(sweep)
    content = {
        "format": FORMAT,
        "name": sweep.name,
        "command": sweep.command,
        "started": sweep.started,
        "varied": sweep.varied,
        "objective": OBJECTIVE,
        "recommended": found.recommended and found.recommended.row["mark"],
        "tied": [standing.row["mark"] for standing in found.tied],
        "text": found.text,
        "notes": found.notes,
        "observations": [dataclasses.asdict(each) for each in analysis.observations],
        "ranking": [standing_json(each) for each in analysis.standings],
        "effects": [effect_json(each) for each in analysis.effects],
        "interactions": [interaction_json(each) for each in analysis.joint],
        "test": analysis.test and {"mark": analysis.test.mark, **standing_json(analysis.test.standing)},
        "votes": {mark: dataclasses.asdict(each) for mark, _, each in analysis.tallies},
        "rows": [{"mark": row["mark"], **{name: row.get(name) for name in names}} for row in sweep.rows],
        "facts": dict([*overview.facts(sweep), *overview.provenance(sweep)]),
    }
    return json.dumps(known(content), indent=1, allow_nan=False) + "\n"  # ASCII: nothing hides, and nothing is lost


def known(item: Any) -> Any:
    """A copy in which a number that is not finite is null: JSON has none."""
    if isinstance(item, dict):
        return {str(key): known(each) for key, each in item.items()}
    if isinstance(item, list | tuple):
        return [known(each) for each in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def standing_json(standing: Standing) -> dict[str, Any]:
    """Every number of a standing, and which trials it is of."""
    content = {
        field.name: value(getattr(standing, field.name))
        for field in dataclasses.fields(standing)
        if field.name != "entry"
    }
    return {"mark": standing.row["mark"], "label": standing.row["label"], **content}


def value(item: Any) -> Any:
    return dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item


def effect_json(effect: MainEffect) -> dict[str, Any]:
    found = zip(effect.factor.levels, effect.levels, [None, *effect.contrasts], strict=True)
    levels = [{"level": name, "mean": value(mean), "contrast": value(contrast)} for name, mean, contrast in found]
    return {"factor": effect.factor.key, "blocks": effect.blocks, "levels": levels}


def interaction_json(joint: Joint) -> dict[str, Any]:
    first, second, found = joint.first, joint.second, joint.found
    cells = [
        {"first": one, "second": two, "mean": value(cell)}
        for one, line in zip(first.levels, found.cells, strict=True)
        for two, cell in zip(second.levels, line, strict=True)
    ]
    return {
        "first": first.key,
        "second": second.key,
        "visible": found.is_visible,
        "difference": value(found.difference),
        "text": joint.text,
        "cells": cells,
    }
