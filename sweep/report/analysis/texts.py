"""The texts that the rows wrote, for each prompt: the fixed prompts, then the held-out ones with their reference.

This module decides which prompts a report shows. report.md shows a few, with the texts of all rows
(``list_prompts``); the page shows nearly all, to choose from (``collect_page_texts``). It also decides which texts are
in the page itself and which are in files beside it. It writes control characters out and cuts long texts; escaping
markup is left to the formats.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from lora_sweep.runs.records import Generation, TrialRecord, read_number
from sweep.report.analysis.configurations import Number, Trial
from sweep.report.analysis.load import Sweep
from sweep.report.formats.cells import format_metric
from sweep.text import MAX_TEXT_CHARACTERS, escape_controls, shorten_text

HELD_OUT_PROMPTS = 3  # shown in report.md
EMPTY_TEXT = "(nothing)"
HIGH_REPETITION = 0.2  # share of repeated 4-grams that is marked as bad

# A page opened from disk cannot fetch files, so it holds the texts: 1 MB is 2,000 texts of 128 tokens, and opens in
# 0.1 s. Further texts are in script files beside the page, one for each prompt, loaded when a reader chooses it.
MAX_PAGE_TEXTS_BYTES = 1_000_000
MAX_PAGE_PROMPTS = 200  # each adds its prompt and its reference to the page, at most 4 kB
SHARDS = "report-texts"  # the folder of the script files

Answers = dict[str, Generation]  # prompt id -> the line of generations.jsonl


@dataclass(frozen=True)
class WrittenText:
    """The text of one row. Each of ``notes`` is (words, tone); the tone is good, bad or plain."""

    trial: Trial
    text: str
    notes: list[tuple[str, str]]


@dataclass(frozen=True)
class PromptTexts:
    """One prompt with the texts of all rows.

    Attributes:
        reference: None for a fixed prompt.
        missing: rows without a text.
        elsewhere: rows that have another prompt under this id, because their data differ.
    """

    prompt_id: str
    title: str
    prompt: str
    reference: str | None
    written: list[WrittenText]
    missing: list[Trial]
    elsewhere: list[Trial]


class PagePrompt(TypedDict):
    """A prompt, in the spelling of the page's data."""

    id: str
    title: str
    prompt: str
    reference: str | None


class PageText(TypedDict, total=False):
    """A text, in the spelling of the page's data."""

    text: str
    ended: bool | None  # by itself, before the limit of new tokens
    quality: Number | None
    repetition: Number | None
    tokens: Number | None
    more: int  # characters that were left out
    of: int  # index of the trial that wrote it, among the trials of the configuration; left out for 0
    elsewhere: bool  # there is no text, because the row has another prompt under this id


class PageTexts(NamedTuple):
    """The prompts and texts of the page.

    Attributes:
        prompts: fixed prompts first.
        texts: index of the prompt -> mark -> text. A prompt in a shard has no key.
        shards: index of the prompt -> the path of the script file with its texts, relative to the page.
        files: the same path -> the content of the file.
    """

    prompts: list[PagePrompt]
    texts: dict[str, dict[str, PageText]]
    shards: dict[str, str]
    files: dict[str, str]


def list_prompts(sweep: Sweep) -> list[PromptTexts]:
    """All fixed prompts, then the first HELD_OUT_PROMPTS held-out prompts, with their texts."""
    answers = [index_answers(trial.record.generations) for trial in sweep.trials]
    first = find_first_answers(sweep, answers)
    held_out = [prompt_id for prompt_id in first if not prompt_id.startswith("fixed-")][:HELD_OUT_PROMPTS]
    return [
        collect_texts(sweep, answers, prompt_id, answer)
        for prompt_id, answer in first.items()
        if prompt_id.startswith("fixed-") or prompt_id in held_out
    ]


def collect_page_texts(sweep: Sweep) -> PageTexts:
    """The texts of at most MAX_PAGE_PROMPTS prompts, for the page.

    The text of a configuration is that of its first trial that answered the prompt.
    """
    answers = {trial.summary.mark: index_answers(trial.record.generations) for trial in sweep.trials}
    first = find_first_answers(sweep, list(answers.values()))
    shown = dict(list(first.items())[:MAX_PAGE_PROMPTS])
    page = PageTexts([describe_prompt(prompt_id, answer) for prompt_id, answer in shown.items()], {}, {}, {})
    free_bytes = MAX_PAGE_TEXTS_BYTES
    for index, (prompt_id, answer) in enumerate(shown.items()):
        texts = {
            configuration.summary.mark: text
            for configuration in sweep.configurations
            if (text := choose_page_text(configuration.trials, answers, prompt_id, answer)) is not None
        }
        script = dump_script_json(texts)
        size = len(script.encode())
        if size <= free_bytes:
            free_bytes -= size
            page.texts[str(index)] = texts
        else:
            path = f"{SHARDS}/{index}.js"
            page.shards[str(index)] = path
            page.files[path] = f"loraSweepTexts({index}, {script});\n"
    return page


def choose_page_text(
    trials: Sequence[Trial], answers: Mapping[str, Answers], prompt_id: str, first: Generation
) -> PageText | None:
    """The text of the first of ``trials`` that answered the prompt; None where none did.

    Args:
        answers: the answers of each trial, by its mark.
        first: the answer that defines the prompt behind ``prompt_id``.
    """
    is_answered = False
    for index, trial in enumerate(trials):
        answer = answers[trial.summary.mark].get(prompt_id)
        if answer is not None and is_same_prompt(answer, first):
            return make_page_text(index, answer, trial.record)
        is_answered = is_answered or answer is not None
    return {"text": "", "elsewhere": True} if is_answered else None


def find_first_answers(sweep: Sweep, answers: Sequence[Answers]) -> Answers:
    """The first answer to each prompt; rows with the sweep's present data are tried first. Fixed prompts come first."""
    first: Answers = {}
    pairs = zip(sweep.trials, answers, strict=True)
    for _, trial_answers in sorted(pairs, key=lambda pair: pair[0].summary.is_outdated):
        for prompt_id, answer in trial_answers.items():
            first.setdefault(prompt_id, answer)
    ids = sorted(first, key=lambda prompt_id: (not prompt_id.startswith("fixed-"), split_number(prompt_id)))
    return {prompt_id: first[prompt_id] for prompt_id in ids}


def index_answers(lines: Sequence[Generation]) -> Answers:
    """The first line for each prompt."""
    answers: Answers = {}
    for line in lines:
        if isinstance(line, dict):
            answers.setdefault(str(line.get("prompt_id")), line)
    return answers


def is_same_prompt(answer: Generation, other: Generation) -> bool:
    """Whether both answer the same prompt; rows whose data differ can have two prompts under one id."""
    return all(answer.get(key) == other.get(key) for key in ("product", "category", "reference"))


def make_page_text(index: int, answer: Generation, record: TrialRecord) -> PageText:
    metrics = read_metrics(record, answer)
    text, ended = str(answer.get("text") or ""), answer.get("finished")
    page_text: PageText = {
        "text": escape_controls(text[:MAX_TEXT_CHARACTERS]),
        "ended": None if ended is None else bool(ended),
        "quality": metrics.get("quality"),
        "repetition": metrics.get("repetition_4gram"),
        "tokens": read_number(answer.get("new_tokens")),
    }
    if len(text) > MAX_TEXT_CHARACTERS:
        page_text["more"] = len(text) - MAX_TEXT_CHARACTERS
    if index:
        page_text["of"] = index
    return page_text


def describe_prompt(prompt_id: str, answer: Generation) -> PagePrompt:
    """The title, the prompt and the reference, from any answer to the prompt."""
    words = [clean_text(word) for word in (answer.get("product"), answer.get("category")) if word]
    reference = answer.get("reference")
    return {
        "id": clean_text(prompt_id),
        "title": " ".join(" · ".join(words).split()) or clean_text(prompt_id),
        "prompt": clean_text(answer.get("prompt") or ""),
        "reference": None if reference is None else clean_text(reference),
    }


def dump_script_json(value: object) -> str:
    """``value`` as JSON inside a script element: no content can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text).replace("<", "\\u003c")


def collect_texts(sweep: Sweep, answers: Sequence[Answers], prompt_id: str, first: Generation) -> PromptTexts:
    """Every row's text for one prompt.

    Args:
        answers: the answers of each trial, in the order of the sweep.
        first: the answer that defines the prompt behind ``prompt_id``.
    """
    written, missing, elsewhere = [], [], []
    for trial, trial_answers in zip(sweep.trials, answers, strict=True):
        answer = trial_answers.get(prompt_id)
        if answer is None:
            missing.append(trial)
        elif not is_same_prompt(answer, first):
            elsewhere.append(trial)
        else:
            text = clean_text(answer.get("text") or "")
            notes = write_notes(answer, read_metrics(trial.record, answer))
            written.append(WrittenText(trial, text if text.strip() else EMPTY_TEXT, notes))
    prompt = describe_prompt(prompt_id, first)
    return PromptTexts(
        prompt_id=prompt["id"],
        title=prompt["title"],
        prompt=prompt["prompt"],
        reference=prompt["reference"],
        written=written,
        missing=missing,
        elsewhere=elsewhere,
    )


def write_notes(answer: Generation, metrics: Mapping[str, Number | None]) -> list[tuple[str, str]]:
    """The notes on one text, each (words, tone)."""
    notes = []
    ended = answer.get("finished")
    if ended is not None:
        notes.append(("ended by itself", "good") if ended else ("did not end", "bad"))
    repetition, quality = metrics.get("repetition_4gram"), metrics.get("quality")
    if repetition is not None:
        tone = "bad" if repetition >= HIGH_REPETITION else "plain"
        notes.append((f"repetition {format_metric('repetition_4gram', repetition)}", tone))
    if quality is not None:
        notes.append((f"quality {format_metric('quality', quality)}", "plain"))
    tokens = read_number(answer.get("new_tokens"))
    if tokens is not None:
        notes.append((f"{tokens:,} tokens", "plain"))
    return notes


def read_metrics(record: TrialRecord, answer: Generation) -> Mapping[str, Number | None]:
    """The metrics of one text."""
    return record.scores.prompts.get(str(answer.get("prompt_id")), {})


def clean_text(text: object) -> str:
    """``text`` cut, then with its control characters written out; in this order a huge text costs no time."""
    return escape_controls(shorten_text(str(text)))


def split_number(prompt_id: str) -> tuple[str, int, str]:
    """A key for sorting, which puts ``validation-2`` before ``validation-10``."""
    match = re.fullmatch(r"(.*?)(\d{1,9})", prompt_id, re.DOTALL)
    return (match[1], int(match[2]), prompt_id) if match else (prompt_id, -1, prompt_id)
