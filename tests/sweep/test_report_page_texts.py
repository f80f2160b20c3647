"""The page's texts: which of them it gets from a sweep, and, in a browser, reading them side by side and voting."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from support.chromium import DESKTOP, PHONE, PICTURES, watch
from support.hostile import HOSTILE_TEXTS
from support.page_data import example_context, example_data, hostile_data, large_data

from lora_sweep.runs.records import EvaluationScores, Generation, TrialRecord
from lora_sweep.scoring.score import count_repeats, split_words
from sweep.report.analysis import texts as texts_module
from sweep.report.analysis.configurations import Configuration, Trial, TrialSummary
from sweep.report.analysis.load import Sweep
from sweep.report.analysis.texts import collect_page_texts
from sweep.report.analysis.votes import count_votes, read_votes
from sweep.report.formats.html import render_page
from sweep.text import MAX_TEXT_CHARACTERS, escape_controls

Json = dict[str, Any]
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
REFERENCE = "GoMapMan is an open resource for gene annotations in the plant sciences."


# ---- what the page gets ----


def generation(prompt_id: str, text: str, **changes: Any) -> Json:
    asked = {"product": f"Archive {prompt_id}", "category": None, "reference": REFERENCE, "prompt": "### Response:\n"}
    return {"prompt_id": prompt_id, **asked, "text": text, "finished": True, "new_tokens": 12, **changes}


def sweep_of(*generations: list[Json], prompts: list[Json] | None = None, marks: str = "123") -> Sweep:
    """A sweep of complete trials, one for each list of generations; all have the same numbers for each prompt."""
    scores = EvaluationScores.from_json({"prompts": prompts or []})
    trials = []
    for place, lines in enumerate(generations):
        record = TrialRecord(f"t{place}", "e1", scores=scores, generations=cast("list[Generation]", lines))
        summary = TrialSummary(
            mark=marks[place], trial_id=f"t{place}", eval_id="e1", kind="trial", label="a row", status="complete"
        )
        trials.append(Trial(summary, record))
    return Sweep("demo", "", "", [], {}, trials, [Configuration(trial.summary, [trial], {}) for trial in trials])


def test_every_prompt_is_there_fixed_ones_first_in_their_own_order() -> None:
    ids = ["validation-10", "validation-2", "fixed-0"]
    sweep = sweep_of([generation(name, "a text", reference=None if name == "fixed-0" else REFERENCE) for name in ids])
    found = collect_page_texts(sweep)
    assert [prompt["id"] for prompt in found.prompts] == ["fixed-0", "validation-2", "validation-10"]
    assert [prompt["reference"] for prompt in found.prompts] == [None, REFERENCE, REFERENCE]
    assert found.prompts[1]["title"] == "Archive validation-2"
    assert found.prompts[1]["prompt"] == "### Response:\n"
    assert list(found.texts) == ["0", "1", "2"]
    assert (found.shards, found.files) == ({}, {})


def test_a_text_comes_with_its_numbers_and_none_where_they_are_unknown() -> None:
    scored = [{"prompt_id": "validation-0", "quality": 20.25, "repetition_4gram": 0.5}]
    lines = [generation("validation-0", "one"), generation("validation-1", "two", finished=None, new_tokens=None)]
    found = collect_page_texts(sweep_of(lines, prompts=scored))
    one, two = found.texts["0"]["1"], found.texts["1"]["1"]
    assert one == {"text": "one", "ended": True, "quality": 20.25, "repetition": 0.5, "tokens": 12}
    assert two == {"text": "two", "ended": None, "quality": None, "repetition": None, "tokens": None}


def test_a_row_without_a_text_has_none_and_one_asked_about_something_else_says_so() -> None:
    other = generation("validation-0", "another", product="Another thing")
    sweep = sweep_of([generation("validation-0", "one")], [], [other])
    assert collect_page_texts(sweep).texts["0"].keys() == {"1", "3"}
    assert collect_page_texts(sweep).texts["0"]["3"] == {"text": "", "elsewhere": True}


def test_a_configuration_of_several_seeds_shows_the_first_that_answered_and_names_it() -> None:
    sweep = sweep_of([], [generation("validation-0", "of the second")], [generation("validation-0", "of the third")])
    configuration = Configuration(sweep.trials[0].summary, sweep.trials, {})
    text = collect_page_texts(dataclasses.replace(sweep, configurations=[configuration])).texts["0"]["1"]
    assert (text["text"], text["of"]) == ("of the second", 1)


def test_a_long_text_is_cut_and_says_by_how_much() -> None:
    text = collect_page_texts(sweep_of([generation("validation-0", "x" * 100_000)])).texts["0"]["1"]
    assert text["text"] == "x" * MAX_TEXT_CHARACTERS
    assert text["more"] == 100_000 - MAX_TEXT_CHARACTERS


def test_texts_beyond_the_limit_stand_in_script_files_a_prompt_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_PAGE_TEXTS_BYTES", 1_000)
    sizes = {"validation-0": 300, "validation-1": 900, "validation-2": 100}
    found = collect_page_texts(sweep_of([generation(*_) for _ in _texts(sizes)]))
    assert list(found.texts) == ["0", "2"]
    assert found.shards == {"1": "report-texts/1.js"}
    call = re.fullmatch(r"loraSweepTexts\(1, (\{.*\})\);\n", found.files["report-texts/1.js"])
    assert call
    assert json.loads(call[1])["1"]["text"] == "x" * 900


def _texts(sizes: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, "x" * size) for name, size in sizes.items()]


def test_hostile_texts_cannot_leave_a_script_file_or_hide_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_PAGE_TEXTS_BYTES", 0)
    found = collect_page_texts(sweep_of(hostile_lines()))
    assert len(found.files) == len(HOSTILE_TEXTS)
    for name, script in found.files.items():
        assert "<" not in script
        assert not HIDDEN.search(script), name
        assert script.count("\n") == 1
        script.encode()


def hostile_lines(texts: list[str] = HOSTILE_TEXTS) -> list[Json]:
    """A generation for each hostile prompt, with its hostile reference."""
    pairs = enumerate(zip(HOSTILE_TEXTS, texts, strict=True))
    return [
        generation(f"validation-{place}", text, product=words, category=words, reference=words, prompt=words)
        for place, (words, text) in pairs
    ]


# ---- the page in a browser ----

MISSING = "net::ERR_FILE_NOT_FOUND"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def desktop(browser: Any) -> Iterator[Any]:
    """A context for most tests: a new one takes as long as a page."""
    context = browser.new_context(viewport=DESKTOP)
    yield context
    context.close()


@pytest.fixture
def opened(browser: Any, desktop: Any, tmp_path: Path) -> Iterator[Open]:
    """``opened(data)`` gives the page; afterwards nothing may have been said on its console or asked of a network.

    Settings are those of a browser's context, such as a viewport of another size.
    """
    said: list[str] = []
    to_close = []

    def open_page(data: Json, files: dict[str, str] | None = None, **settings: Any) -> Any:
        for name, content in (files or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content, encoding="utf-8")
        path = tmp_path / "report.html"
        path.write_text(render_page(example_context(data), data), encoding="utf-8")
        page = browser.new_context(**settings).new_page() if settings else desktop.new_page()
        to_close.append(page.context if settings else page)
        page.set_default_timeout(5_000)
        watch(page, said)
        page.goto(path.as_uri())
        return page

    yield open_page
    for each in to_close:
        each.close()
    assert [message for message in said if MISSING not in message] == []


SIZES = {"desktop": DESKTOP, "phone": PHONE}


def heads(page: Any) -> list[str]:
    """The marks of the cards of the first prompt; the reference by its name."""
    found = page.locator("#texts-shown article").first.locator(".card .head").all_text_contents()
    return [head.split()[0] for head in found]


def card(page: Any, mark: str) -> Any:
    return page.locator("#texts-shown article").first.locator(".card").nth(heads(page).index(mark))


def one_prompt(*texts: str, reference: str | None = REFERENCE) -> Json:
    """The example, of whose first prompt row 3, then its baseline, wrote these texts."""
    data = example_data()
    data["prompts"][0]["reference"] = reference
    for mark, text in zip(("3", "B1"), texts, strict=False):
        data["texts"]["0"][mark] |= {"text": text}
    return data


def test_a_reader_first_sees_the_best_rows_beside_the_reference_and_their_baselines(opened: Open) -> None:
    page = opened(example_data())
    assert heads(page) == ["reference", "B1", "B2", "3", "7", "8"]  # 3 is recommended; 7 and 8 are the best tied
    data = example_data()
    assert data["prompts"][0]["reference"] in card(page, "reference").inner_text()
    text = data["texts"]["0"]["7"]
    assert text["text"] in card(page, "7").inner_text()
    assert f"quality {text['quality']:.1f}" in card(page, "7").inner_text()
    assert f"repetition {text['repetition']:.3f}" in card(page, "7").inner_text()
    assert "recommended" in card(page, "3").inner_text()


def test_rows_are_chosen_up_to_six_and_removed(opened: Open) -> None:
    page = opened(example_data())
    page.get_by_text("Choose rows").click()
    page.wait_for_selector("#texts-choose-rows li")
    assert page.locator("#texts-choose-rows li").count() == 10
    for mark in ("1", "2", "6"):
        page.locator(f'#texts-choose-rows input[value="{mark}"]').check()
    assert heads(page) == ["reference", "B1", "B2", "1", "2", "3", "6", "7", "8"]
    assert "No text: diverged" in card(page, "6").inner_text()
    assert page.locator('#texts-choose-rows input[value="4"]').is_disabled()
    assert "6 chosen, which is the most" in page.locator("#texts-choose-rows").inner_text()
    page.get_by_role("button", name="Remove row 2").click()
    assert heads(page) == ["reference", "B1", "B2", "1", "3", "6", "7", "8"]
    assert page.locator('#texts-choose-rows input[value="4"]').is_enabled()
    page.get_by_label("baseline", exact=True).uncheck()
    page.get_by_label("reference", exact=True).uncheck()
    assert heads(page) == ["1", "3", "6", "7", "8"]


def test_prompts_are_turned_like_pages_and_shown_several_at_once(opened: Open) -> None:
    data = example_data()
    page = opened(data)
    titles = page.locator("#texts-shown h3")
    assert page.get_by_role("button", name="Previous prompt").is_disabled()
    page.get_by_role("button", name="Next prompt").click()
    assert titles.all_text_contents() == [data["prompts"][1]["title"]]
    page.get_by_label("Prompt", exact=True).select_option("11")
    assert titles.all_text_contents() == [data["prompts"][11]["title"]]
    assert "reference" not in heads(page)  # a fixed prompt has none
    assert page.get_by_role("button", name="Next prompt").is_disabled()
    page.get_by_text("Show several prompts").click()
    page.locator('#texts-choose-prompts input[value="4"]').check()
    assert titles.all_text_contents() == [data["prompts"][place]["title"] for place in (4, 11)]
    assert page.locator("#texts-shown .card").count() == 6 + 5


def test_words_that_repeat_are_marked_as_the_metric_counts_them(opened: Open) -> None:
    text = "A map of plant species. It is a map of plant species, a map; a map OF plant species!"
    page = opened(one_prompt(text))
    marked = card(page, "3").locator("mark.again").all_text_contents()
    assert marked == ["a map of plant species", "a map OF plant species"]
    page.get_by_label("repetition", exact=True).uncheck()
    assert card(page, "3").locator("mark").count() == 0
    scripts = ["今日は世界。今日は世界。", "สวัสดี ab cd", "a b c d a b c d", "e\u0301t\u00e9 1.5 ❤️ ok_go", BEYOND]
    for text in [*scripts, *(escape_controls(text[:3000]) for text in HOSTILE_TEXTS)]:
        found = page.evaluate("(text) => LoraSweep.words.split(text).map((word) => word.key)", text)
        flags = page.evaluate("(text) => LoraSweep.words.repeated(LoraSweep.words.split(text))", text)
        if text.casefold() == text.lower():  # they differ in letters such as ß
            assert found == split_words(text)
        grams = [tuple(found[at : at + 4]) for at in range(len(found) - 3)]
        again = {at + step for at, gram in enumerate(grams) if gram in grams[:at] for step in range(4)}
        assert [at for at, flag in enumerate(flags) if flag] == sorted(again)
        assert bool(again) == bool(count_repeats(found))


BEYOND = "\U0001f600 smile \U0001d400\U0001d401 math"  # letters and pictures of two UTF-16 units


def test_differences_to_the_reference_and_to_the_baseline_are_marked(opened: Open) -> None:
    text = "GoMapMan is a closed resource for gene annotations in the plant sciences. Try it!"
    data = one_prompt(text, "GoMapMan is a closed resource.")
    data["texts"]["0"]["7"]["text"] = "Use this for many things."
    page = opened(data)
    assert card(page, "3").locator("ins, del").count() == 0
    page.get_by_label("Compare with").select_option("reference")
    assert card(page, "3").locator("ins").all_text_contents() == ["a closed", "Try it"]
    assert card(page, "3").locator("del").all_text_contents() == ["an open"]
    assert card(page, "3").locator("del").get_attribute("title") == "2 words missing here"
    assert "+4 −2 words" in card(page, "3").inner_text()
    # One word in common amid others is chance, and of a long run that is missing the ends are enough.
    assert card(page, "7").locator("ins").all_text_contents() == ["Use this for many things"]
    assert card(page, "7").locator("del").all_text_contents() == ["GoMapMan is an … the plant sciences"]
    assert "".join(card(page, "3").locator(".words").inner_text().split("an open ")).startswith(text)
    page.get_by_label("Compare with").select_option("baseline")
    assert card(page, "3").locator("ins").all_text_contents() == ["for gene annotations in the plant sciences. Try it"]
    assert card(page, "3").locator("del").count() == 0
    assert card(page, "B1").locator("ins, del").count() == 0


def test_a_texts_end_is_marked(opened: Open) -> None:
    data = example_data()
    for mark, ended in (("3", True), ("7", False), ("8", None)):
        data["texts"]["0"][mark] |= {"text": "A text", "ended": ended}
    page = opened(data)
    texts = {mark: card(page, mark).locator(".words").inner_text().rstrip() for mark in ("3", "7", "8")}
    assert texts == {"3": "A text ■", "7": "A text ✂ cut off", "8": "A text"}
    notes = [card(page, mark).locator(".notes").inner_text() for mark in ("3", "7", "8")]
    assert [("ended by itself" in note, "cut off" in note) for note in notes] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_texts_beside_the_page_are_read_when_a_prompt_is_chosen(opened: Open) -> None:
    data = example_data()
    script = f"loraSweepTexts(1, {json.dumps(data['texts'].pop('1'))});"
    del data["texts"]["2"]
    data["shards"] = {"1": "report-texts/1.js", "2": "report-texts/2.js"}
    page = opened(data, {"report-texts/1.js": script})
    page.get_by_role("button", name="Next prompt").click()
    page.wait_for_selector("#texts-shown .card")
    assert heads(page) == ["reference", "B1", "B2", "3", "7", "8"]
    page.get_by_role("button", name="Next prompt").click()
    page.wait_for_selector("#texts-shown .failed")
    assert "report-texts/2.js, which is missing or cannot be read" in page.locator("#texts-shown").inner_text()


# ---- the blind comparison ----


def start(page: Any) -> Any:
    page.get_by_role("button", name="Start comparing").click()
    page.wait_for_selector("#blind-stage:not([hidden])")
    return page.locator("#blind-stage")


def tally_rows(page: Any) -> dict[str, list[str]]:
    rows = page.locator(".tally tbody tr").all()
    cells = [[cell.inner_text().strip() for cell in row.locator("th, td").all()] for row in rows]
    return {cell[0].split()[0]: cell[1:] for cell in cells}


def saved_votes(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_three_votes_by_key_their_tally_and_their_file(opened: Open, tmp_path: Path) -> None:
    data = example_data()
    page = opened(data)
    stage = start(page)
    for number, key in enumerate(("1", "2", "0"), start=1):
        before = stage.inner_text()
        assert not [row["label"] for row in data["rows"] if row["label"] in before]
        page.keyboard.press(key)
        page.get_by_text(f"Vote {number}").wait_for()
    said = page.locator("#blind-last").inner_text()
    assert "Vote 3, equal" in said
    assert sum(row["label"] in said for row in data["rows"]) == 2

    path = saved_votes(page, tmp_path)
    assert re.fullmatch(r"votes-demo-\d{8}T\d{6}\.json", path.name)
    assert "runs/sweeps/demo/" in page.locator("#blind-where").inner_text()
    votes, notes = read_votes(tmp_path)
    assert (len(votes), notes) == (3, [])
    assert [vote.winner for vote in votes] == ["left", "right", "tie"]
    keys = {row["mark"]: [tuple(key) for key in row["trial_ids"]] for row in data["rows"]}
    found = count_votes(votes, keys)
    assert {mark: cells[:3] for mark, cells in tally_rows(page).items()} == {
        mark: [str(each.wins), str(each.losses), str(each.ties)] for mark, each in found.items()
    }
    for mark, cells in tally_rows(page).items():
        each = found[mark]
        assert cells[3] == f"{100 * each.win_rate:.0f} %"
        assert cells[4] == f"{100 * each.low:.0f} to {100 * each.high:.0f} %"


# Votes "equal" that many times; gives the marks that each vote revealed, text 1 first.
VOTE_EQUAL = """async (times) => {
  const revealed = [];
  for (let vote = 0; vote < times; vote += 1) {
    document.querySelector('[data-vote="tie"]').click();
    revealed.push(Array.from(document.querySelectorAll('#blind-last .mark'), (mark) => mark.textContent));
    await new Promise((go) => setTimeout(go));
  }
  return revealed;
}"""


def test_rows_of_the_tied_group_and_baselines_are_compared_with_sides_at_random(opened: Open) -> None:
    data = example_data()
    for texts in data["texts"].values():
        texts["8"]["text"] = texts["7"]["text"]  # no question: which of two equal texts is better
        texts["B2"]["text"] += " indeed"
    page = opened(data)
    start(page)
    sides = page.evaluate(VOTE_EQUAL, 39)
    pairs = [frozenset(each) for each in sides]
    expected = {frozenset(pair) for pair in itertools.combinations(("3", "4", "7", "8", "B1", "B2"), 2)}
    expected -= {frozenset({"7", "8"}), frozenset({"B1", "B2"})}  # nobody chooses between baselines
    assert {pair: pairs.count(pair) for pair in pairs} == dict.fromkeys(expected, 3)
    marks = [row["mark"] for row in data["rows"]]
    assert {marks.index(one) < marks.index(two) for one, two in sides} == {True, False}


def test_a_vote_is_taken_back_until_it_is_saved_and_keys_need_the_focus(opened: Open, tmp_path: Path) -> None:
    page = opened(example_data())
    stage = start(page)
    first = stage.inner_text()
    page.keyboard.press("1")
    page.wait_for_selector(".tally tbody tr")
    page.keyboard.press("u")
    assert page.locator(".tally tbody tr").count() == 0
    assert stage.inner_text() == first  # the same question again
    page.keyboard.press("s")
    page.get_by_role("button", name="Next prompt").focus()
    page.keyboard.press("1")  # no vote: the comparison has not the focus
    assert page.locator(".tally tbody tr").count() == 0
    stage.focus()
    page.keyboard.press("2")
    page.wait_for_selector(".tally tbody tr")
    assert page.get_by_role("button", name="Undo").is_enabled()
    saved_votes(page, tmp_path)
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_rows_are_chosen_for_the_comparison_and_questions_end(opened: Open) -> None:
    page = opened(example_data())
    page.get_by_text("Rows to compare").click()
    for mark in ("4", "7", "8", "B2"):
        page.locator(f'#blind-choose input[value="{mark}"]').uncheck()
    start(page)
    page.evaluate(VOTE_EQUAL, 12)
    page.wait_for_selector("#blind-none:not([hidden])")
    assert "No pair of different texts is left" in page.locator("#blind-none").inner_text()
    assert tally_rows(page).keys() == {"3", "B1"}
    assert not page.locator("#blind-stage").is_visible()


def test_votes_of_earlier_files_are_in_the_tally_from_the_start(opened: Open) -> None:
    data = example_data()
    data["votes"] = {"count": 5, "notes": ["votes-x.json is not JSON"], "rows": {"3": [4, 1, 0], "B1": [1, 4, 0]}}
    page = opened(data)
    assert tally_rows(page)["3"][:4] == ["4", "1", "0", "80 %"]
    assert page.locator("#blind-count").inner_text() == "5 votes; equal counts half."
    assert page.locator("#blind-notes li").all_text_contents() == ["votes-x.json is not JSON"]
    start(page)
    page.keyboard.press("1")
    page.wait_for_selector("#blind-last .was")
    assert page.locator("#blind-count").inner_text().startswith("6 votes, 5 from files and 1 in this page")


# ---- anything as a text ----


# Every prompt in turn: its title, and the text of the card before the last without what the page adds to it.
SHOWN = """async () => {
  const shown = [];
  const choice = document.getElementById('texts-prompt');
  for (const option of choice.options) {
    choice.value = option.value;
    choice.dispatchEvent(new Event('change'));
    await new Promise((go) => setTimeout(go));
    const box = Array.from(document.querySelectorAll('#texts-shown .card .words')).at(-2).cloneNode(true);
    box.querySelectorAll('del, .end').forEach((mark) => mark.remove());
    shown.push([document.querySelector('#texts-shown h3').textContent, box.textContent]);
  }
  return shown;
}"""


def test_hostile_texts_are_read_as_they_are_and_nothing_runs(opened: Open) -> None:
    found = collect_page_texts(sweep_of(hostile_lines(), hostile_lines(HOSTILE_TEXTS[::-1]), marks="37"))
    data = {**hostile_data(), "prompts": found.prompts, "texts": found.texts}
    data["votes"] = {"count": 0, "notes": HOSTILE_TEXTS[:20], "rows": {}}
    page = opened(data, viewport=PHONE)
    page.get_by_label("Compare with").select_option("reference")
    for place, (title, text) in enumerate(page.evaluate(SHOWN)):
        assert title == found.prompts[place]["title"]
        written = found.texts[str(place)]["3"]["text"]
        assert text.startswith(written if written.strip() else f"(nothing){written}")
    start(page)
    for key in "1201201":
        page.keyboard.press(key)
        page.wait_for_timeout(10)
    assert tally_rows(page).keys() == {"3", "7"}
    assert page.evaluate("window.RAN") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_at_desktop_and_phone_width(opened: Open, size: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    page = opened(example_data(), viewport=SIZES[size])
    page.get_by_label("Compare with").select_option("reference")
    start(page)
    for key in "121":
        page.keyboard.press(key)
        page.wait_for_timeout(10)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name in ("generations", "blind"):
            page.locator(f"#{name}").screenshot(path=PICTURES / f"{name}-{size}-{scheme}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert len(tally_rows(page)) >= 2


def test_many_rows_are_searched_and_their_texts_come_from_beside_the_page(opened: Open) -> None:
    data = large_data(trials=200, prompts=1)
    texts = dict.fromkeys([row["mark"] for row in data["rows"]], example_data()["texts"]["0"]["3"])
    page = opened(data, {"report-texts/0.js": f"loraSweepTexts(0, {json.dumps(texts)});"})
    page.wait_for_selector("#texts-shown .card")
    page.get_by_text("Choose rows").click()
    page.get_by_label("Search in: Rows to show").fill("r=64 lr=1e-05")
    shown = page.locator("#texts-choose-rows li:visible")
    assert 1 < shown.count() < 10
    shown.nth(1).locator("input").check()  # the first is among the best: chosen already
    page.wait_for_function("() => document.querySelectorAll('#texts-rows button').length === 4")
