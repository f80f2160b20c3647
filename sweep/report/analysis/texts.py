"""What the rows wrote, prompt by prompt: the fixed prompts, then the held-out ones with their reference.

Owns which prompts a report shows: report.md a few, with every row's text (``shown_prompts``), the page nearly all, to
choose from (``page_texts``), and which texts stand in the page itself. Texts come out visible and shortened, but not
escaped: markup is the writers' matter.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora_sweep.runs.records import TrialRecord
from sweep.report.analysis.load import Row, Sweep, is_other, number
from sweep.report.formats.cells import metric
from sweep.text import MAX_TEXT_CHARACTERS, escape_controls, shorten_text

HELD_OUT_SHOWN = 3
NOTHING = "(nothing)"

# A page opened from disk cannot fetch, so texts stand in it: 1 MB is 2,000 texts of 128 tokens, and opens in 0.1 s.
# What is beyond stands in script files beside it, one a prompt, each read when a reader chooses the prompt.
PAGE_TEXTS_BYTES = 1_000_000
PAGE_PROMPTS = 200  # with its prompt's words and its reference, at most 4 kB each, in the page
SHARDS = "report-texts"  # the folder of the script files

Json = dict[str, Any]


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


class PageTexts(NamedTuple):
    """What the page needs of the texts, in the spelling of its data.

    Attributes:
        prompts: ``{"id", "title", "prompt", "reference"}``, fixed ones first; a prompt's place here is its key below.
        texts: place -> mark -> ``{"text", "ended", "quality", "repetition", "tokens"}``, with ``more`` (characters that
            were left out), ``of`` (the place, among the entry's trials, of the one that wrote it; left out: 0) and, in
            place of a text, ``elsewhere`` (asked about something else). A prompt in a shard has no key.
        shards: place -> the script file that holds the prompt's texts, relative to the page.
        files: those files' content, by the same name.
    """

    prompts: list[Json]
    texts: dict[str, dict[str, Json]]
    shards: dict[str, str]
    files: dict[str, str]


def shown_prompts(sweep: Sweep) -> list[Prompt]:
    """Every fixed prompt, then the first HELD_OUT_SHOWN others, in their own order."""
    first = _first_lines(sweep)
    held_out = [name for name in first if not name.startswith("fixed-")][:HELD_OUT_SHOWN]
    return [_prompt(sweep, name, line) for name, line in first.items() if name.startswith("fixed-") or name in held_out]


def page_texts(sweep: Sweep, entries: Mapping[str, Sequence[int]]) -> PageTexts:
    """Every prompt's texts, PAGE_PROMPTS prompts at most, for the page.

    Args:
        entries: an entry's mark -> the places in ``sweep.rows`` of its trials. Of trials that differ in the seed
            alone, the first that answered the prompt is shown.
    """
    first = dict(list(_first_lines(sweep).items())[:PAGE_PROMPTS])
    answers = [_answers(result) for result in sweep.results]
    found = PageTexts([_described(name, line) for name, line in first.items()], {}, {}, {})
    room = PAGE_TEXTS_BYTES
    for place, (name, line) in enumerate(first.items()):
        asked = _asked(line)
        texts = {}
        for mark, members in entries.items():
            written = [(of, answers[at][name]) for of, at in enumerate(members) if name in answers[at]]
            same = [(of, answer) for of, answer in written if _asked(answer[0]) == asked]
            if same:
                texts[mark] = _page_text(*same[0])
            elif written:
                texts[mark] = {"text": "", "elsewhere": True}
        script = _script_json(texts)
        size = len(script.encode())
        if size <= room:
            room -= size
            found.texts[str(place)] = texts
        else:
            path = f"{SHARDS}/{place}.js"
            found.shards[str(place)] = path
            found.files[path] = f"loraSweepTexts({place}, {script});\n"
    return found


def _first_lines(sweep: Sweep) -> dict[str, Json]:
    """Each prompt's first line, of the present data's rows where they have one; fixed prompts first, in their order."""
    first: dict[str, Json] = {}
    for _, result in sorted(zip(sweep.rows, sweep.results, strict=True), key=lambda pair: is_other(pair[0])):
        for name, line in _by_id(result.generations).items():
            first.setdefault(name, line)
    ids = sorted(first, key=lambda name: (not name.startswith("fixed-"), _natural(name)))
    return {name: first[name] for name in ids}


def _by_id(lines: Sequence[Any]) -> dict[str, Json]:
    """The first line of each prompt."""
    found: dict[str, Json] = {}
    for line in lines:
        if isinstance(line, dict):
            found.setdefault(str(line.get("prompt_id")), line)
    return found


def _answers(result: TrialRecord) -> dict[str, tuple[Json, Json]]:
    """Each prompt's line and its metrics."""
    scores = _scores(result)
    return {name: (line, scores.get(name, {})) for name, line in _by_id(result.generations).items()}


def _asked(line: Json) -> list[Any]:
    """What a prompt asks; rows whose data differ can have been asked two things under one id."""
    return [line.get(key) for key in ("product", "category", "reference")]


def _page_text(of: int, answer: tuple[Json, Json]) -> Json:
    line, scores = answer
    text, ended = str(line.get("text") or ""), line.get("finished")
    more = len(text) - MAX_TEXT_CHARACTERS
    return {
        "text": escape_controls(text[:MAX_TEXT_CHARACTERS]),
        "ended": None if ended is None else bool(ended),
        "quality": number(scores.get("quality")),
        "repetition": number(scores.get("repetition_4gram")),
        "tokens": number(line.get("new_tokens")),
        **({"more": more} if more > 0 else {}),
        **({"of": of} if of else {}),
    }


def _described(prompt_id: str, line: Json) -> Json:
    """A prompt's own words."""
    title = " · ".join(_clean(line[key]) for key in ("product", "category") if line.get(key))
    reference = line.get("reference")
    return {
        "id": _clean(prompt_id),
        "title": " ".join(title.split()) or _clean(prompt_id),
        "prompt": _clean(line.get("prompt") or ""),
        "reference": None if reference is None else _clean(reference),
    }


def _script_json(value: Any) -> str:
    """``value`` as it can stand in a script: nothing in it can end the script's element, or begin a comment there."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _prompt(sweep: Sweep, prompt_id: str, first: Json) -> Prompt:
    written, missing, elsewhere = [], [], []
    for row, result in zip(sweep.rows, sweep.results, strict=True):
        line = _by_id(result.generations).get(prompt_id)
        if line is None:
            missing.append(row)
        elif _asked(line) != _asked(first):
            elsewhere.append(row)
        else:
            text = _clean(line.get("text") or "")
            written.append(
                Written(row, text if text.strip() else NOTHING, _notes(line, _scores(result).get(prompt_id, {})))
            )
    described = _described(prompt_id, first)
    return Prompt(
        prompt_id=described["id"],
        title=described["title"],
        prompt=described["prompt"],
        reference=described["reference"],
        written=written,
        missing=missing,
        elsewhere=elsewhere,
    )


def _notes(line: Json, scores: Json) -> list[tuple[str, str]]:
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


def _scores(result: TrialRecord) -> dict[str, dict[str, float | None]]:
    """The metrics of each prompt."""
    return result.scores.prompts


def _clean(text: Any) -> str:
    """Cut before it is spelt out, so that a huge text costs nothing."""
    return escape_controls(shorten_text(str(text)))


def _natural(prompt_id: str) -> tuple[str, int, str]:
    """``validation-2`` before ``validation-10``."""
    match = re.fullmatch(r"(.*?)(\d{1,9})", prompt_id, re.DOTALL)
    return (match[1], int(match[2]), prompt_id) if match else (prompt_id, -1, prompt_id)
