"""What the rows wrote, prompt by prompt: the fixed prompts, then the first held-out ones with their reference.

Owns which prompts a report shows. Texts come out visible and shortened, but not escaped: markup is the writers' matter.
"""

import re
from dataclasses import dataclass
from typing import Any

from sweep.report.show import metric, shortened, visible
from sweep.report.table import Row, Sweep, is_other, number

HELD_OUT_SHOWN = 3
NOTHING = "(nothing)"


@dataclass(frozen=True)
class Written:
    """One row's text. ``notes`` are (word, tone) with tone good, bad or plain."""

    row: Row
    text: str
    notes: list[tuple[str, str]]


@dataclass(frozen=True)
class Prompt:
    """One prompt with all texts. ``reference`` is None for a fixed prompt.

    Attributes:
        missing: rows without a text.
        elsewhere: rows that were asked about something else under this id: their data differ.
    """

    prompt_id: str
    title: str
    prompt: str
    reference: str | None
    written: list[Written]
    missing: list[Row]
    elsewhere: list[Row]


def shown_prompts(sweep: Sweep) -> list[Prompt]:
    """Every fixed prompt, then the first HELD_OUT_SHOWN others, in their own order."""
    by_id: dict[str, dict[str, Any]] = {}
    for _, result in sorted(zip(sweep.rows, sweep.results, strict=True), key=lambda pair: is_other(pair[0])):
        for line in result.generations:
            if isinstance(line, dict):
                by_id.setdefault(str(line.get("prompt_id")), line)
    ids = sorted(by_id, key=_natural)
    fixed = [name for name in ids if name.startswith("fixed-")]
    held_out = [name for name in ids if not name.startswith("fixed-")][:HELD_OUT_SHOWN]
    return [_prompt(sweep, name, by_id[name]) for name in [*fixed, *held_out]]


def _prompt(sweep: Sweep, prompt_id: str, first: dict[str, Any]) -> Prompt:
    written, missing, elsewhere = [], [], []
    for row, result in zip(sweep.rows, sweep.results, strict=True):
        lines = [line for line in result.generations if isinstance(line, dict) and line.get("prompt_id") == prompt_id]
        if lines and any(lines[0].get(key) != first.get(key) for key in ("product", "category", "reference")):
            elsewhere.append(row)
        elif lines:
            scores = _scores(result.scores, prompt_id)
            text = _clean(lines[0].get("text") or "")
            written.append(Written(row, text if text.strip() else NOTHING, _notes(lines[0], scores)))
        else:
            missing.append(row)
    title = " · ".join(_clean(first[key]) for key in ("product", "category") if first.get(key))
    reference = first.get("reference")
    return Prompt(
        prompt_id=_clean(prompt_id),
        title=" ".join(title.split()) or _clean(prompt_id),
        prompt=_clean(first.get("prompt") or ""),
        reference=None if reference is None else _clean(reference),
        written=written,
        missing=missing,
        elsewhere=elsewhere,
    )


def _notes(line: dict[str, Any], scores: dict[str, Any]) -> list[tuple[str, str]]:
    notes = []
    finished = line.get("finished")
    if finished is not None:
        notes.append(("ended by itself", "good") if finished else ("did not end", "bad"))
    repetition = number(scores.get("repetition_4gram"))
    if repetition is not None:
        notes.append((f"repetition {metric('repetition_4gram', repetition)}", "bad" if repetition >= 0.2 else "plain"))
    quality = number(scores.get("quality"))
    if quality is not None:
        notes.append((f"quality {metric('quality', quality)}", "plain"))
    tokens = number(line.get("new_tokens"))
    if tokens is not None:
        notes.append((f"{tokens:,} tokens", "plain"))
    return notes


def _scores(scores: dict[str, Any], prompt_id: str) -> dict[str, Any]:
    prompts = scores.get("prompts")
    for each in prompts if isinstance(prompts, list) else []:
        if isinstance(each, dict) and each.get("prompt_id") == prompt_id:
            return each
    return {}


def _clean(text: Any) -> str:
    """Cut before it is spelt out, so that a huge text costs nothing."""
    return visible(shortened(str(text)))


def _natural(prompt_id: str) -> tuple[str, int, str]:
    """``validation-2`` before ``validation-10``."""
    match = re.fullmatch(r"(.*?)(\d{1,9})", prompt_id, re.DOTALL)
    return (match[1], int(match[2]), prompt_id) if match else (prompt_id, -1, prompt_id)
