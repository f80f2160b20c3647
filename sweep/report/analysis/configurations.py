"""Trials as the entries of a ranking: those that differ in their seed alone are one entry.

Owns what folds with what, how an entry's row sums up its trials, and the marks by which people name both. Does not
compare entries (``ranking``).
"""

import json
import statistics
import string
from dataclasses import dataclass
from typing import Any

from lora_sweep.runs.records import TrialRecord

Row = dict[str, Any]
GROUPS = ("model", "data", "lora", "quant", "train", "eval")  # of a configuration; the rest changes no number
HIGHEST = ("peak_memory_bytes", "peak_gpu_memory_bytes")  # of several trials, the one that needs most counts
SETTINGS = ("r", "alpha", "dropout", "learning_rate", "bits", "eval_bits", "trainable_params")  # equal in all of them


@dataclass(frozen=True)
class Entry:
    """One configuration.

    Attributes:
        row: spelt as a row of the table: of several complete trials, means, and the highest peak of memory.
        places: where its trials stand in the sweep's rows, in the order of their seeds.
        config: the groups that can change a number.
    """

    row: Row
    places: list[int]
    config: dict[str, Any]


def fold(rows: list[Row], results: list[TrialRecord]) -> list[Entry]:
    """The entries in order of their first trials. Gives every row its ``mark``: B1, 1, 2, or 2a and 2b of two seeds."""
    homes: dict[str, list[int]] = {}
    for place, (row, result) in enumerate(zip(rows, results, strict=True)):
        homes.setdefault(_configuration(row, result), []).append(place)
    entries, count = [], {"baseline": 0, "trial": 0}
    for home in homes.values():
        places = sorted(home, key=lambda place: (rows[place].get("seed") or 0, place))
        kind = rows[places[0]]["kind"]
        count[kind] += 1
        mark = f"{'B' if kind == 'baseline' else ''}{count[kind]}"
        for number, place in enumerate(places):
            rows[place]["mark"] = mark + (_letter(number) if len(places) > 1 else "")
        config = {key: each for key, each in results[places[0]].config.items() if key in GROUPS}
        entries.append(Entry(_summed([rows[place] for place in places], mark), places, config))
    return entries


def _configuration(row: Row, result: TrialRecord) -> str:
    """Equal for trials that differ in their seed alone; what was made from other data or another model is apart."""
    config = {key: result.config[key] for key in GROUPS if key in result.config}
    if not config:
        return f"{result.trial_id}/{result.eval_id}"
    made_from = sorted({"model", "data"} & set(row["drift"])), result.training.fingerprints
    return json.dumps([row["kind"], config, made_from], sort_keys=True, default=str)


def _summed(rows: list[Row], mark: str) -> Row:
    if len(rows) == 1:
        return rows[0]
    complete = [row for row in rows if row["status"] == "complete"]
    shown = complete or rows
    summed = {**shown[0], "mark": mark, "seed": [row.get("seed") for row in rows]}
    summed["label"] = _without_seed(str(rows[0]["label"]))
    summed["drift"] = list(dict.fromkeys(name for row in rows for name in row["drift"]))
    if 0 < len(complete) < len(rows):
        summed["missing_seeds"] = len(rows) - len(complete)
    for key in dict.fromkeys(key for row in shown for key in row if key not in (*SETTINGS, "seed")):
        values = [row[key] for row in shown if isinstance(row.get(key), int | float)]
        if values:
            summed[key] = max(values) if key in HIGHEST else _mean(values)
    return summed


def _mean(values: list[float | int]) -> float | int:
    """Exact, and a whole number of equal whole numbers."""
    return values[0] if len(set(values)) == 1 else float(statistics.mean(values))


def _without_seed(label: str) -> str:
    return " ".join(word for word in label.split(" ") if not word.startswith("seed="))


def _letter(number: int) -> str:
    return string.ascii_lowercase[number] if number < 26 else f".{number + 1}"
