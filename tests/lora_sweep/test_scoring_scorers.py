"""scorers: each number by hand, what is refused before a weight is loaded, and functions of one's own."""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import ask_inspect_in_a_child

from lora_sweep.config import user_functions
from lora_sweep.config.identity import eval_identity, short_hash
from lora_sweep.config.schema import BUILT_IN_SCORERS, Config, Data, Eval, FixedPrompt, Model
from lora_sweep.config.user_functions import find_source_file, fingerprint_function
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import facts_key
from lora_sweep.model.data_facts import list_prompts
from lora_sweep.model.inspect import inspect_trial
from lora_sweep.scoring import scorers
from lora_sweep.scoring.metrics import METRICS, SCORER_METRICS
from lora_sweep.scoring.score import score_generations
from lora_sweep.scoring.scorers import check_references, check_scorer, make_scorer
from sweep.plan.make import make_plan

BUILT_IN: dict[str, dict[str, Any]] = {
    "exact_match": {},
    "label": {"labels": ["yes", "no"]},
    "json": {},
    "regex": {"pattern": r"answer: (\d+)"},
}


def row(text: str, reference: str | None, number: int = 0) -> dict[str, Any]:
    asked = {"prompt_id": f"validation-{number}", "product": "lamp", "category": "light"}
    return {**asked, "text": text, "reference": reference, "finished": True}


def numbers(name: str, text: str, reference: str | None, **more: Any) -> dict[str, Any]:
    """What the scorer adds to a text's numbers, and quality, through the front door."""
    chosen = Eval(scorer=name, **{**BUILT_IN.get(name, {}), **more})
    check_scorer(chosen)
    found: dict[str, Any] = score_generations([row(text, reference)], make_scorer(chosen, [reference or ""]))[
        "prompts"
    ][0]
    return {key: value for key, value in found.items() if key in SCORER_METRICS or key == "quality"}


# --- built-in scorers, by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference", "equal"),
    [("A lamp.", "A lamp.", 1), ("A\n lamp. ", "A lamp.", 1), ("a lamp.", "A lamp.", 0), ("", "A lamp.", 0)],
)
def test_exact_match_is_equality_but_for_white_space(text: str, reference: str, equal: float) -> None:
    assert numbers("exact_match", text, reference) == {"quality": 100 * equal, "exact_match": equal}


@pytest.mark.parametrize(
    ("text", "correct", "known"),
    [
        ("Yes", 1, 1),
        (' "YES." ', 1, 1),
        ("no", 0, 1),
        ("yes, it is", 0, 0),
        ("maybe", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_label_is_the_whole_text_whatever_its_case_and_its_full_stop(text: str, correct: int, known: int) -> None:
    expected = {"quality": 100 * correct, "label_correct": correct, "label_known": known}
    assert numbers("label", text, "yes") == expected


def test_labels_are_those_of_the_references_where_none_are_listed() -> None:
    scorer = make_scorer(Eval(scorer="label"), ["C", "C++"])
    scores = score_generations([row("C++", "C"), row("c", "C"), row("C#", "C")], scorer)
    assert [(each["label_correct"], each["label_known"]) for each in scores["prompts"]] == [(0, 1), (1, 1), (0, 0)]


REFERENCE = '{"name": "lamp", "size": {"h": 30, "w": 10.0}, "tags": ["a", "b"], "new": true}'


@pytest.mark.parametrize(
    ("text", "valid", "keys", "values"),
    [
        (REFERENCE, 1, 1, 1),
        ('{"new": true, "tags": ["a", "b"], "size": {"w": 10, "h": 3e1}, "name": "lamp"}', 1, 1, 1),
        # Keys: name, size, size.h, size.w, tags, new. Leaves: name, size.h, size.w, tags 0, tags 1, new.
        ('{"name": "lamp"}', 1, 2 * 1 / (1 + 6), 1 / 6),
        ('{"name": "lamp", "tags": ["b", "a"]}', 1, 2 * 2 / (2 + 6), 1 / 6),
        ('{"name": "chair", "size": 30, "more": null}', 1, 2 * 2 / (3 + 6), 0),
        ('{"new": 1}', 1, 2 * 1 / (1 + 6), 0),  # true is not 1
        ('{"new": "true"}', 1, 2 * 1 / (1 + 6), 0),
        ("[]", 1, 0, 0),
        ("7", 1, 0, 0),
        (f"Here it is: {REFERENCE}", 0, 0, 0),
        (f"```json\n{REFERENCE}\n```", 0, 0, 0),
        (REFERENCE[:-1], 0, 0, 0),
        ("", 0, 0, 0),
        ('{"size": {"h": NaN}}', 0, 0, 0),
    ],
)
def test_json_is_compared_key_by_key_and_leaf_by_leaf(text: str, valid: float, keys: float, values: float) -> None:
    found = numbers("json", text, REFERENCE)
    expected = {"quality": 100 * values, "json_valid": valid, "json_keys": keys, "json_values": values}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("reference", "leaves"), [("{}", 1), ("[]", 1), ("null", 1), ('{"a": {}, "b": [[], 1]}', 3)])
def test_what_is_empty_is_a_leaf(reference: str, leaves: int) -> None:
    assert len(scorers.read_json_leaves(reference) or {}) == leaves
    assert numbers("json", reference, reference)["quality"] == 100
    assert numbers("json", '"other"', reference)["quality"] == 0


def test_json_that_is_nested_without_end_is_none() -> None:
    deep = {levels: "[" * levels + "]" * levels for levels in (scorers.MAX_JSON_DEPTH, scorers.MAX_JSON_DEPTH + 2)}
    assert [numbers("json", text, None)["json_valid"] for text in deep.values()] == [1, 0]


@pytest.mark.parametrize(
    ("text", "found", "match"),
    [
        ("So the answer: 42.", 1, 1),
        ("answer: 42 or answer: 7", 1, 1),
        ("answer: 7", 1, 0),
        ("answer: 420", 1, 0),
        ("42", 0, 0),
    ],
)
def test_a_pattern_s_first_group_is_compared(text: str, found: int, match: int) -> None:
    expected = {"quality": 100 * match, "regex_match": match, "regex_found": found}
    assert numbers("regex", text, "It is so: answer: 42") == expected


def test_without_a_group_that_took_part_the_whole_match_is_compared() -> None:
    assert numbers("regex", "x 12 y", "12", pattern=r"\d+")["quality"] == 100
    assert numbers("regex", "x 12 y", "z 1", pattern=r"\d+")["quality"] == 0
    assert numbers("regex", "cat", "cat", pattern=r"(dog)|cat")["quality"] == 100
    assert numbers("regex", "cat", "dog", pattern=r"(dog)|cat")["quality"] == 0


def test_without_a_reference_only_the_text_s_own_numbers_are_known() -> None:
    assert numbers("exact_match", "a", None) == {"quality": None, "exact_match": None}
    assert numbers("label", "yes", None) == {"quality": None, "label_correct": None, "label_known": 1}
    expected = {"quality": None, "json_valid": 1, "json_keys": None, "json_values": None}
    assert numbers("json", "{}", None) == expected
    assert numbers("regex", "answer: 1", None) == {"quality": None, "regex_match": None, "regex_found": 1}


def test_the_text_s_own_metrics_stay_and_means_are_over_all_numbers() -> None:
    rows = [row('{"a": 1}', '{"a": 1}', 0), row("no", '{"a": 1}', 1), row('{"b": 2}', None, 2)]
    scores = score_generations(rows, make_scorer(Eval(scorer="json"), []))
    names = [*METRICS, "json_keys", "json_valid", "json_values"]
    assert list(scores["means"]) == list(scores["references"]) == names
    assert all(list(each) == ["prompt_id", *names] for each in scores["prompts"])
    assert scores["means"]["quality"] == 50
    assert scores["means"]["json_valid"] == pytest.approx(2 / 3)
    assert scores["means"]["json_values"] == pytest.approx(1 / 2)
    assert scores["means"]["words"] == pytest.approx((2 + 1 + 2) / 3)
    assert scores["references"]["quality"] == 100
    plain = score_generations(rows)
    for name in set(METRICS) - {"quality"}:
        assert plain["means"][name] == scores["means"][name]


def test_a_reference_without_a_word_counts_for_a_scorer() -> None:
    scores = score_generations([row("{}", "{}")], make_scorer(Eval(scorer="json"), []))
    assert scores["references"]["quality"] == scores["means"]["quality"] == 100
    assert scores["means"]["rouge_l"] is None


def test_text_is_the_scorer_that_adds_nothing() -> None:
    assert make_scorer(Eval(), ["a"]) is None
    assert numbers("text", "a b", "a b") == {"quality": 100}


def test_every_built_in_number_has_a_meaning_of_its_own() -> None:
    found = {name for scorer in BUILT_IN for name in numbers(scorer, "a", "a")} - {"quality"}
    assert found == set(SCORER_METRICS)
    assert not set(SCORER_METRICS) & set(METRICS)
    assert {main for main in scorers.MAIN_METRICS.values() if main} <= found


HOSTILE = {
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 900 + "1" + "}" * 900,
    "a huge number": "9" * 10_000,
    "a long list": json.dumps(list(range(20_000))),
    "many keys": json.dumps({str(n): n for n in range(20_000)}),
    "lone surrogates": '"\\ud800"',
    "control characters": "\x00\x1b[31m\u202e",
    "constants": "[NaN, Infinity, -Infinity]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_get_numbers_and_take_no_time(name: str) -> None:
    start = time.process_time()
    for scorer in BUILT_IN:
        chosen = Eval(scorer=scorer, **BUILT_IN[scorer])
        given_as = [row(HOSTILE[name], REFERENCE), row(REFERENCE, HOSTILE[name]), row(HOSTILE[name], HOSTILE[name])]
        found = [(make_scorer(chosen, [REFERENCE]) or len)(each) for each in given_as]
        json.dumps(found, allow_nan=False)
    assert time.process_time() - start < 3.0  # about 0.2 s


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=30), reference=st.none() | st.text(max_size=30), name=st.sampled_from([*BUILT_IN]))
def test_any_text_has_finite_numbers_within_0_and_1(text: str, reference: str | None, name: str) -> None:
    found = numbers(name, text, reference)
    quality = found.pop("quality")
    assert quality is None or 0 <= quality <= 100
    assert all(value is None or 0 <= value <= 1 for value in found.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(JSON)
def test_any_json_is_equal_to_itself_however_it_is_spaced(value: Any) -> None:
    found = numbers("json", json.dumps(value, indent=3), json.dumps(value))
    assert found == {"quality": 100, "json_valid": 1, "json_keys": 1, "json_values": 1}


# --- settings that cannot be right -----------------------------------------------------------------------------------

NAMES = "allowed: text, exact_match, label, json, regex"
UNKNOWN = "is unknown (a function of your own is written module:function)"
WRONG = [
    ({"scorer": "exact_mach"}, f"eval.scorer = exact_mach: {UNKNOWN}; did you mean 'exact_match'?; {NAMES}"),
    ({"scorer": "my-module:score"}, f"eval.scorer = my-module:score: {UNKNOWN}; {NAMES}"),
    ({"scorer": "../mine:score"}, f"eval.scorer = ../mine:score: {UNKNOWN}; {NAMES}"),
    ({"scorer": ""}, f"eval.scorer = : {UNKNOWN}; {NAMES}"),
    ({"scorer": "regex"}, "eval.scorer = regex: needs eval.pattern"),
    ({"scorer": "regex", "pattern": ""}, "eval.scorer = regex: needs eval.pattern"),
    (
        {"scorer": "regex", "pattern": "(a"},
        "eval.pattern = (a: is no regular expression (missing ), unterminated subpattern at position 0)",
    ),
    ({"pattern": "a"}, "eval.pattern: is only read by eval.scorer=regex, but the scorer is text"),
    (
        {"scorer": "json", "labels": ["a"]},
        "eval.labels: is only read by eval.scorer=label, but the scorer is json",
    ),
    ({"scorer": "label", "labels": ["yes", "Yes."]}, "eval.labels: 'Yes.': is the same label as an earlier one"),
    ({"scorer": "label", "labels": ["yes", " ?"]}, "eval.labels: ' ?': has only white space and punctuation"),
]


@pytest.mark.parametrize(("chosen", "said"), WRONG, ids=[said for _, said in WRONG])
def test_settings_that_cannot_be_right_are_refused_in_one_sentence(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as caught:
        check_scorer(Eval(**chosen))
    assert str(caught.value) == said


@pytest.mark.parametrize("name", ["mine:score", "pack.mine:score", "mine:Judge.score", *scorers.MAIN_METRICS])
def test_a_name_that_can_be_right_is_taken_without_a_look(name: str) -> None:
    check_scorer(Eval(scorer=name, **BUILT_IN.get(name, {})))


def asked(*references: str | None) -> list[dict[str, Any]]:
    return [row("", reference, number) for number, reference in enumerate(references)]


@pytest.mark.parametrize(
    ("name", "references", "said"),
    [
        ("json", ("{}", "a lamp", "{'a': 1}", None), "json: 2 of 3 references are no JSON, first 'a lamp'"),
        ("label", ("Yes", "perhaps"), "label: 1 of 2 references are not among eval.labels, first 'perhaps'"),
        ("regex", ("answer: 3", "3"), "regex: 1 of 2 references do not hold eval.pattern, first '3'"),
    ],
)
def test_references_of_another_kind_are_refused(name: str, references: tuple[str | None, ...], said: str) -> None:
    chosen = Eval(scorer=name, **BUILT_IN[name])
    with pytest.raises(Refused) as caught:
        check_references(chosen, asked(*references))
    assert str(caught.value) == f"eval.scorer = {said}"
    check_references(chosen, asked(references[0], None))


def test_any_reference_will_do_for_a_text_and_an_exact_match_and_as_a_label() -> None:
    for name in ("text", "exact_match", "label"):
        check_references(Eval(scorer=name), asked("a lamp", "...", "{", None))


# --- functions of one's own ------------------------------------------------------------------------------------------

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """``write("return 0.5")``: the name of a scorer with that body, in a module that stands in the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module written twice in a second is read twice
    before = set(sys.modules)

    def make(body: str, module: str = "mine", head: str = "") -> str:
        path = tmp_path / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{head}\ndef score(text, reference, product, category):\n    {body}\n")
        importlib.invalidate_caches()
        sys.modules.pop(module, None)
        return f"{module}:score"

    yield make
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("mine", "pack"):
            del sys.modules[name]


def own(name: str, text: str = "a b", reference: str | None = "a") -> dict[str, Any]:
    found: dict[str, Any] = score_generations([row(text, reference)], make_scorer(Eval(scorer=name), []))["prompts"][0]
    return {key: value for key, value in found.items() if key == "quality" or key not in (*METRICS, "prompt_id")}


def test_a_function_gives_a_number_or_several(write: Write) -> None:
    assert own(write("return len(reference) / len(text)"), "abcd", "a") == {"quality": 25}
    assert own(write("return reference is None"), reference=None) == {"quality": 100}
    assert own(write("return None")) == {"quality": None}
    body = "return {'polite': 1, 'seconds': 12.5, 'quality': 0.5, 'odd': None}"
    expected = {"quality": 50, "score_odd": None, "score_polite": 1, "score_seconds": 12.5}
    assert own(write(body)) == expected
    assert own(write("return float((product, category) == ('lamp', 'light'))")) == {"quality": 100}


def test_numbers_of_some_prompts_are_unknown_for_the_others(write: Write) -> None:
    name = write("return {'quality': 1, 'length': 3} if text == 'b' else 0")
    scores = score_generations([row("a", "x", 0), row("b", "x", 1)], make_scorer(Eval(scorer=name), []))
    assert [each["score_length"] for each in scores["prompts"]] == [None, 3]
    assert (scores["means"]["quality"], scores["means"]["score_length"]) == (50, 3)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("return 1.5", "gave quality = 1.5; it must be from 0 to 1"),
        ("return -0.1", "gave quality = -0.1; it must be from 0 to 1"),
        ("return float('nan')", "gave quality = nan; it must be a finite number, or None"),
        ("return 'good'", "gave quality = 'good'; it must be a finite number, or None"),
        ("return {'quality': 1, 'b': 1e999}", "gave b = inf; it must be a finite number, or None"),
        ("return {'b': 1}", "gave a dict without 'quality'"),
        ("return {'quality': 1, 'a b': 1}", "gave the name 'a b'; a name has letters, digits and '_', at most 40"),
        ("return {'quality': 1, 3: 1}", "gave the name 3; a name has letters, digits and '_', at most 40"),
        ("return {'quality': 1, '<b>': 1}", "gave the name '<b>'; a name has letters, digits and '_', at most 40"),
    ],
)
def test_a_function_that_fails_says_where_and_is_refused_when_it_is_tried(body: str, said: str, write: Write) -> None:
    name = write(body)
    with pytest.raises(RuntimeError) as caught:
        own(name)
    assert str(caught.value) == f"eval.scorer = mine:score: on validation-0 it {said}"
    with pytest.raises(Refused) as refused:
        check_references(Eval(scorer=name), asked("a", "b"))
    assert str(refused.value) == str(caught.value)


@pytest.mark.parametrize(
    ("body", "references", "on"),
    [("return len(reference) / 9", ("a", "b", None), 2), ("return 1 / len(text)", ("a", "b"), 0)],
)
def test_a_function_is_tried_without_a_reference_and_on_an_empty_text(
    body: str, references: tuple[str | None, ...], on: int, write: Write
) -> None:
    name = write(body)
    assert own(name)["quality"] > 0
    with pytest.raises(Refused, match=rf"^eval\.scorer = mine:score: on validation-{on} it raised "):
        check_references(Eval(scorer=name), asked(*references))


def test_a_function_cannot_take_a_metric_s_name_or_a_column_s(write: Write) -> None:
    found = own(write("return {'quality': 0, 'words': 7, 'status': 8, 'json_valid': 0.5}"))
    assert found == {"quality": 0, "score_json_valid": 0.5, "score_status": 8, "score_words": 7}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_at_all:score", "cannot be loaded (ModuleNotFoundError: No module named 'nowhere_at_all')"),
        ("mine:scores", "cannot be loaded (AttributeError: module 'mine' has no attribute 'scores')"),
        ("mine:HEAD", "is no function but a int"),
        ("broken:score", "cannot be loaded (RuntimeError: no licence)"),
        ("leaving:score", "cannot be loaded (SystemExit)"),
    ],
)
def test_what_cannot_be_loaded_is_refused(name: str, said: str, write: Write) -> None:
    write("return 1", head="HEAD = 1")
    write("return 1", "broken", head="raise RuntimeError('no licence')")
    write("return 1", "leaving", head="raise SystemExit")
    with pytest.raises(Refused) as caught:
        check_references(Eval(scorer=name), asked("a"))
    assert str(caught.value) == f"eval.scorer = {name}: {said}"


def test_an_installed_function_goes_by_its_entry_point_s_name(write: Write, tmp_path: Path) -> None:
    write("return 0.25", "pack.mine")
    (tmp_path / "judges-1.0.dist-info").mkdir()
    (tmp_path / "judges-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: judges\nVersion: 1.0\n")
    (tmp_path / "judges-1.0.dist-info/entry_points.txt").write_text(
        "[lora_sweep.scorers]\npoliteness = pack.mine:score\njson = pack.mine:score\n"
    )
    user_functions.list_installed_scorers.cache_clear()
    try:
        check_scorer(Eval(scorer="politeness"))
        before = fingerprint_function("politeness")
        assert "pack.mine" not in sys.modules, "it was imported to be named"
        assert own("politeness") == {"quality": 25}
        assert own("json", "{}", "{}")["quality"] == 100, "a built-in scorer keeps its name"
        assert fingerprint_function("json") is None
        with pytest.raises(Refused, match="did you mean 'politeness'"):
            check_scorer(Eval(scorer="politness"))
        write("return 0.5", "pack.mine")
        assert fingerprint_function("politeness") != before
    finally:
        user_functions.list_installed_scorers.cache_clear()


def test_a_function_s_source_names_the_evaluation_and_is_not_run_for_it(write: Write, tmp_path: Path) -> None:
    raising = "raise RuntimeError('imported')"

    def names(name: str) -> tuple[str, str]:
        config = Config(model=Model("tiny", tiny="llama"), data=Data("tiny", tiny=9), eval=Eval(scorer=name))
        return short_hash(eval_identity(config)), facts_key(config, True)

    name = write("return 1", "pack.mine", head=raising)
    (tmp_path / "pack/__init__.py").write_text(raising)
    one = names(name)
    assert find_source_file("pack.mine") == tmp_path / "pack/mine.py"
    assert find_source_file("pack") == tmp_path / "pack/__init__.py"
    assert names(name) == one
    write("return 0", "pack.mine", head=raising)
    other = names(name)
    assert not set(one) & set(other)
    write("return 0", "pack.mine", head=raising)
    assert names(name) == other
    assert "pack" not in sys.modules


@pytest.mark.parametrize("name", ["nowhere", "nowhere.at.all", "sys", "json.decoder.mine"])
def test_a_module_that_is_not_there_has_no_source_and_can_be_named(name: str, write: Write) -> None:
    write("return 1")  # which is no part of json.decoder
    assert find_source_file(name) is None
    assert (fingerprint_function(f"{name}:f") or "").startswith(f"{name}:f@")


def test_built_in_scorers_have_no_source_and_settings_of_their_own_in_the_identity() -> None:
    assert set(scorers.MAIN_METRICS) == set(BUILT_IN_SCORERS)
    assert {fingerprint_function(name) for name in BUILT_IN_SCORERS} == {None}
    chosen = [Eval(), Eval(split="test"), Eval(scorer="json"), Eval(scorer="label"), Eval(scorer="label", labels=["a"])]
    chosen += [Eval(scorer="regex", pattern=pattern) for pattern in ("a", "b")]
    ids = {short_hash(eval_identity(Config(eval=each))) for each in chosen}
    assert len(ids) == len(chosen)


# --- planning --------------------------------------------------------------------------------------------------------


def config(**evaluation: Any) -> Config:
    return Config(
        model=Model(name="tiny", tiny="llama"),
        data=Data(name="tiny", tiny=40, validation_fraction=0.25),
        eval=Eval(**evaluation),
    )


def test_planning_tries_a_function_in_a_process_of_its_own(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sweep.plan.facts.ask_inspect", ask_inspect_in_a_child)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    name = write("return 1 / 0")
    with pytest.raises(Refused, match=r"^eval\.scorer = mine:score: on 'blue mouse 4' it raised ZeroDivisionError"):
        make_plan([config(scorer=name, fixed_prompts=[FixedPrompt("red lamp 1")], prompts=1)], strict=True)
    assert "mine" not in sys.modules


def test_references_are_judged_with_the_rows_before_torch_is_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lora_sweep.model.inspect.check_settings", lambda train: pytest.fail("the rows come first"))
    with pytest.raises(Refused, match=r"^eval\.scorer = json: 4 of 4 references are no JSON, first 'The \w+ \w+ numb"):
        inspect_trial(config(scorer="json", prompts=4), strict=True)


def test_the_prompts_are_of_the_split_and_one_without_rows_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    from lora_sweep.data.splits import load_splits

    chosen = config(split="test", prompts=2, fixed_prompts=[FixedPrompt("lamp")])
    split = load_splits(chosen.data)
    found = [(each["product"], each["reference"]) for each in list_prompts(chosen, split)]
    assert found == [*((each.product, each.description) for each in split.test[:2]), ("lamp", None)]
    chosen.data.test_fraction = 0.0
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Refused) as caught:
        inspect_trial(chosen, strict=True)
    assert str(caught.value) == "eval.split = test: no row of tiny is in the test split (data.test_fraction=0.0)"
