"""The page's data made by hand: a plausible sweep, a hostile one, and a large one, each the same at every call."""

import math
import random
from typing import Any

from sweep.report.formats.columns import find_column
from sweep.text import format_bytes, format_millions

Json = dict[str, Any]

GRID = [(r, targets, bits) for r in (8, 16) for targets in ("attn", "all_linear") for bits in (4, 8)]
TIED = ("3", "4", "7", "8")  # in the example; "3" is the cheapest of them
DIVERGED = "6"
CATEGORIES = ("Optical Mouse", "Ontology", "Protein database", "Gene catalogue", "Desk lamp", "Chemistry archive")
REFERENCE = (
    "The {name} archive keeps curated records of super-enhancers with their tissues, their sources and their target "
    "genes. It is revised twice a year, and every entry links to the study that it was taken from."
)
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} ${alert(3)} =1+1 @you |a|b| `c` **d** "
    "[x](javascript:alert(4)) ⟨U+001B⟩[31mred \u200f\u05d0\u05d1 <!-- <style>*{display:none}</style> $x_1$ %s \\u003c"
)


def example_data() -> Json:
    """Two baselines and eight trials, of which one diverged, on twelve prompts."""
    rng = random.Random(4)
    rows = [_baseline(f"B{place}", bits, 24.3 + place) for place, bits in enumerate((4, 8), start=1)]
    for place, (r, targets, bits) in enumerate(GRID, start=1):
        wide = targets == "all_linear"
        quality = 30.2 + 3.1 * (r == 16) + 7.4 * wide - 1.5 * (r == 16 and wide) + 0.4 * (bits == 8)
        rows.append(_trial(str(place), r, targets, bits, quality))
    texts = {str(place): {row["mark"]: _text(rng, place, row) for row in _with_texts(rows)} for place in range(12)}
    return {
        "name": "demo",
        "objective": "quality",
        "rows": rows,
        "factors": [
            {"key": "r", "name": "r", "levels": ["8", "16"], "numeric": True},
            {"key": "targets", "name": "targets", "levels": ["attn", "all_linear"], "numeric": False},
            {"key": "bits", "name": "base bits", "levels": ["4", "8"], "numeric": True},
        ],
        "effects": [
            _effect("r", ("8", 34.1, 30.3, 38.0), ("16", 36.4, 32.6, 40.2), (2.3, -0.4, 5.1)),
            _effect("targets", ("attn", 31.9, 28.1, 35.6), ("all_linear", 38.6, 34.7, 42.5), (6.7, 4.0, 9.4)),
            _effect("bits", ("4", 35.0, 31.2, 38.9), ("8", 35.5, 31.6, 39.3), (0.5, -2.1, 3.0)),
        ],
        "interactions": [
            _interaction(
                "r", "targets", True, (30.4, 37.8, 33.5, 39.4), "The gain of all_linear is smaller at r=16 than at r=8."
            ),
            _interaction("r", "bits", False, (33.9, 34.3, 36.1, 36.7), "No interaction is visible."),
            _interaction("targets", "bits", False, (31.7, 32.1, 38.4, 38.8), "No interaction is visible."),
        ],
        "curves": [_curve(rng, row) for row in rows if row["kind"] == "trial"],
        "timeline": {"origin": "2026-01-02T03:04:05+00:00", "spans": _spans(rows)},
        "prompts": [_prompt(place) for place in range(12)],
        "texts": texts,
        "shards": {},
    }


def hostile_data() -> Json:
    """The example with hostile names, labels, levels, prompts and texts, numbers missing, and one huge text."""
    data = example_data()
    data["name"] = HOSTILE
    for row in data["rows"]:
        row["label"] = f"{HOSTILE} {row['mark']}"
        row["status"] = f"failed {HOSTILE}" if row["mark"] == DIVERGED else row["status"]
        row["values"] = {f"{key} {HOSTILE}": f"{value} {HOSTILE}" for key, value in row["values"].items()}
    for factor in data["factors"]:
        factor["key"], factor["name"] = f"{factor['key']} {HOSTILE}", f"{factor['name']} {HOSTILE}"
        factor["levels"] = [f"{level} {HOSTILE}" for level in factor["levels"]]
    for effect in data["effects"]:
        effect["factor"] += f" {HOSTILE}"
        for level in (*effect["levels"], *effect["contrasts"]):
            level["level"] += f" {HOSTILE}"
        effect["contrasts"][0]["against"] += f" {HOSTILE}"
    for interaction in data["interactions"]:
        interaction.update(a=f"{interaction['a']} {HOSTILE}", b=f"{interaction['b']} {HOSTILE}", text=HOSTILE)
        for cell in interaction["cells"]:
            cell.update(a=f"{cell['a']} {HOSTILE}", b=f"{cell['b']} {HOSTILE}")
    for prompt in data["prompts"]:
        prompt.update(title=HOSTILE, prompt=HOSTILE * 5, reference=prompt["reference"] and HOSTILE)
    for written in data["texts"].values():
        for text in written.values():
            text["text"] = f"{HOSTILE} {text['text']}"
    data["texts"]["0"]["3"]["text"] = "x" * 100_000
    data["texts"]["1"]["3"]["text"] = ""
    data["rows"][2].update(trainable_params=None, train_seconds=None, peak_memory_bytes=None, low=None, high=None)
    data["curves"][0].update(steps=[1, 2], losses=[3.5, 1e30])
    return data


def large_data(trials: int = 1000, prompts: int = 50) -> Json:
    """A sweep of ``trials`` rows beside one baseline. Its texts stand in shards, so none is in the page."""
    rng = random.Random(5)
    data = example_data()
    ranks, rates = (1, 2, 4, 8, 16, 32, 64, 128), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    rows = [_baseline("B1", 4, 24.3)]
    for place in range(trials):
        r, targets, bits = ranks[place % 8], ("attn", "all_linear")[place // 8 % 2], (4, 8)[place // 16 % 2]
        rate = rates[place // 32 % 5]
        quality = 26 + 2.2 * math.log2(r) ** 0.5 + 4 * (targets == "all_linear") + rng.gauss(0, 2)
        row = _trial(str(place + 1), r, targets, bits, round(quality, 3))
        row["label"] += f" lr={rate:g}"
        row["values"]["learning_rate"] = rate
        row["trial_ids"] = [[f"t{place:011d}", "e0123456789a"]]
        rows.append(row)
    data["rows"] = rows
    data["curves"] = [_curve(rng, row, 200) for row in rows if row["kind"] == "trial"]
    data["timeline"]["spans"] = _spans(rows)
    data["prompts"] = [_prompt(place) for place in range(prompts)]
    data["texts"] = {}
    data["shards"] = {str(place): f"report-texts/{place}.js" for place in range(prompts)}
    data["factors"].append({"key": "learning_rate", "name": "learning rate", "levels": [], "numeric": True})
    data["factors"][-1]["levels"] = [f"{rate:g}" for rate in rates]
    data["factors"][0]["levels"] = [str(r) for r in ranks]
    return data


def _baseline(mark: str, bits: int, quality: float) -> Json:
    return {
        "mark": mark,
        "label": f"baseline {bits}bit",
        "kind": "baseline",
        "status": "complete",
        "tone": "good",
        "values": {"bits": bits},
        "quality": quality,
        "low": quality - 3.2,
        "high": quality + 3.3,
        "trainable_params": 0,
        "train_seconds": None,
        "peak_memory_bytes": 900_000_000,
        "validation_loss": 3.58,
        "tied": None,
        "verdict": None,
        "recommended": False,
        "baseline": None,
        "trial_ids": [[f"b{mark[1:]:0>11}", "e0123456789a"]],
    }


def _trial(mark: str, r: int, targets: str, bits: int, quality: float) -> Json:
    done = mark != DIVERGED
    tied = mark in TIED
    return {
        "mark": mark,
        "label": f"r={r} {targets} {bits}bit",
        "kind": "trial",
        "status": "complete" if done else "diverged",
        "tone": "good" if done else "bad",
        "values": {"r": r, "targets": targets, "bits": bits},
        "quality": quality if done else None,
        "low": quality - 3.6 if done else None,
        "high": quality + 3.7 if done else None,
        "trainable_params": r * (57_600 if targets == "attn" else 305_280),
        "train_seconds": 71.3 + 1.9 * r + 34.6 * (targets == "all_linear") + 12.1 * (bits == 8),
        "peak_memory_bytes": 1_430_000_000 + 7_000_000 * r + 190_000_000 * (bits == 8),
        "validation_loss": round(3.36 - quality / 100, 4) if done else None,
        "tied": tied if done else None,
        "verdict": ("high" if tied else "no gain" if mark == "1" else "low") if done else None,
        "recommended": mark == TIED[0],
        "baseline": "B1" if bits == 4 else "B2",
        "trial_ids": [[f"t{mark:0>11}", "e0123456789a"]],
    }


def _with_texts(rows: list[Json]) -> list[Json]:
    return [row for row in rows if row["status"] == "complete"]


def _text(rng: random.Random, place: int, row: Json) -> Json:
    name = f"Smooth {CATEGORIES[place % len(CATEGORIES)]}"
    base = row["kind"] == "baseline"
    if base or (row["mark"] == "1" and place % 3 == 0):
        text = f"The {name} is a place. " + "It is a place for data and it is a place. " * 6 + "It is"
    else:
        kept = rng.choice(("curated", "reviewed", "open", "checked"))
        ending = rng.choice(("It is revised twice a year.", "Entries link to their study.", "Use it for free."))
        text = (
            f"The {name} archive keeps {kept} records of super-enhancers with their tissues and target genes. {ending}"
        )
    return {
        "text": text,
        "ended": not base,
        "quality": None if place >= 10 else round(rng.uniform(8, 24 if base else 60), 1),
        "repetition": 0.62 if base else round(rng.uniform(0, 0.12), 3),
        "tokens": 96 if base else 41,
    }


def _prompt(place: int) -> Json:
    fixed = place in (10, 11)
    name = f"Smooth {CATEGORIES[place % len(CATEGORIES)]} {place}"
    return {
        "id": f"fixed-{place - 10}" if fixed else f"validation-{place}",
        "title": f"{name} · {CATEGORIES[place % len(CATEGORIES)]}",
        "prompt": f"### Instruction:\nDescribe the product.\n\n### Input:\n{name}\n\n### Response:\n",
        "reference": None if fixed else REFERENCE.format(name=name),
    }


def _effect(factor: str, first: tuple[Any, ...], second: tuple[Any, ...], contrast: tuple[float, ...]) -> Json:
    levels = [dict(zip(("level", "mean", "low", "high"), level, strict=True)) for level in (first, second)]
    value, low, high = contrast
    difference = {"level": second[0], "against": first[0], "value": value, "low": low, "high": high}
    return {
        "factor": factor,
        "contexts": 4,
        "levels": levels,
        "contrasts": [{**difference, "shown": low > 0 or high < 0}],
    }


def _interaction(a: str, b: str, visible: bool, means: tuple[float, ...], text: str) -> Json:
    levels = {"r": ("8", "16"), "targets": ("attn", "all_linear"), "bits": ("4", "8")}
    pairs = [(first, second) for first in levels[a] for second in levels[b]]
    cells = [
        {"a": first, "b": second, "mean": mean, "low": mean - 3.4, "high": mean + 3.5}
        for (first, second), mean in zip(pairs, means, strict=True)
    ]
    return {"a": a, "b": b, "visible": visible, "text": text, "cells": cells}


def _curve(rng: random.Random, row: Json, steps: int = 60) -> Json:
    floor = 1.9 + (3.36 - (row["quality"] or 34) / 100) / 3
    losses = [floor + 1.4 * math.exp(-step / (steps / 4)) + rng.gauss(0, 0.07) for step in range(steps)]
    if row["status"] == "diverged":
        losses = [*losses[:10], 3.9, 5.2, 7.7]
    return {"mark": row["mark"], "steps": list(range(1, len(losses) + 1)), "losses": [round(x, 4) for x in losses]}


def _spans(rows: list[Json]) -> list[Json]:
    spans, clock = [], 4.0
    for row in rows:
        if row["kind"] == "trial":
            end = clock + row["train_seconds"]
            spans.append(
                {"mark": row["mark"], "phase": "training", "start": clock, "end": end, "status": row["status"]}
            )
            clock = end + 1.5
    for row in rows:
        if row["status"] == "complete":
            spans.append(
                {"mark": row["mark"], "phase": "evaluation", "start": clock, "end": clock + 21, "status": "complete"}
            )
            clock += 22.5
    return spans


def example_context(data: Json) -> Json:
    """What the template reads, made from the page's data."""
    columns = [
        "mark",
        "r",
        "targets",
        "bits",
        "quality",
        "validation_loss",
        "trainable_params",
        "train_seconds",
        "peak_memory_bytes",
    ]
    columns += ["verdict", "status"]
    named = [{**_named(row), "cells": [_shown(row["quality"]), _shown(row["validation_loss"])]} for row in data["rows"]]
    failures = [row for row in named if row["tone"] == "bad"]
    reason = f"loss is nan at step 7 {HOSTILE if data['name'] == HOSTILE else ''}"
    return {
        "name": data["name"],
        "command": "python -m lora_sweep.train -m lora.r=8,16 lora.targets=attn,all_linear quant=4bit,8bit",
        "recommendation": "Use row 3 (r=8 all_linear 4bit): the cheapest of the four configurations that are tied with "
        "the best on these 12 prompts.",
        "evidence": [
            "Quality 37.6 [34.0, 41.3], +12.3 [8.1, 16.4] against its baseline, better on 11 prompts of 12.",
            "Tied with it: rows 4, 7 and 8, of 2.4 M to 4.9 M parameters; the highest mean is row 8's, 39.6.",
        ],
        "warnings": ["Single seed: ranking not established."],
        "observations": [
            "targets: all_linear instead of attn brings +6.7 [4.0, 9.4] at 5.3 times the parameters.",
            "r: no difference between 8 and 16 is shown, +2.3 [-0.4, 5.1].",
        ],
        "tiles": [
            ("Recommended", "37.6", "r=8 all_linear 4bit"),
            ("Its baseline", "25.3", "baseline 4bit, untuned"),
            ("The reference texts", "97.1", "the top of the scale"),
            ("Trials complete", "7 of 8", "1 diverged"),
        ],
        "columns": [find_column(key) for key in columns],
        "bar_range": (20, 45),
        "rows": [_table_row(row, columns) for row in data["rows"]],
        "metrics": [("quality", "how near the text is to its reference, higher is better"), ("validation_loss", "")],
        "metric_rows": named,
        "reference_cells": ["97.1", "–"],
        "comparison_headers": ["prompts"],
        "comparison_legend": "What they mean.",
        "comparisons": [{**row, "cells": ["12"]} for row in named],
        "differences": [("code", [("c0de", "rows 1, 2"), ("0ld", "row 3")])],
        "failures": [
            {**row, "reason": reason, "log": f"step 6 loss 7.7\nstep 7 loss nan\n{reason}"} for row in failures
        ],
        "facts": [("Base model", "smollm2_demo, 134,515,008 parameters (135 M)"), ("Seed", "0")],
        "provenance": [("Sweep started", data["timeline"]["origin"]), ("Varied", "lora.r, lora.targets, quant")],
        "commands": [{"title": "Train row 3 again", "command": "python -m lora_sweep.train lora.r=8 quant=4bit"}],
        "ids": [
            {**row, "folder": "/evals/".join(each["trial_ids"][0]), "again": "python -m lora_sweep.train lora.r=8"}
            for row, each in zip(named, data["rows"], strict=True)
        ],
    }


def _named(row: Json) -> Json:
    return {
        "mark": row["mark"],
        "label": row["label"],
        "is_baseline": row["kind"] == "baseline",
        "status": row["status"],
        "tone": row["tone"],
    }


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:,.1f}" if isinstance(value, float) else str(value)


def _cell(key: str, value: Any) -> str:
    return format_bytes(value) if key == "peak_memory_bytes" else _shown(value)


def _table_row(row: Json, keys: list[str]) -> Json:
    values = {**row, **dict.fromkeys(keys[1:4]), **row["values"]}
    place = {key: None if row[key] is None else round((row[key] - 20) * 4) for key in ("low", "high", "quality")}
    low, high = row["low"], row["high"]
    return {
        **_named(row),
        "is_best": row["recommended"],
        "tied": bool(row["tied"]),
        "cells": {key: row["label"] if key == "targets" else _cell(key, values[key]) for key in keys},
        "sorts": {key: "" if values[key] is None else str(values[key]) for key in keys},
        "targets": str(row["values"].get("targets", "")),
        "modules": "q_proj, v_proj" if "attn" in row["label"] else "down_proj, gate_proj, k_proj and 4 more",
        "millions": format_millions(row["trainable_params"]) if row["trainable_params"] else "",
        "trainable": f"{row['trainable_params'] or 0:,}",
        "quality": _shown(row["quality"]),
        "interval": "" if low is None or high is None else f"[{low:.1f}, {high:.1f}]",
        "low": place["low"],
        "high": place["high"],
        "dot": place["quality"],
        "tick": None if row["baseline"] is None else 21,
    }
