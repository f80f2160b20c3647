"""results: a file is there whole or not at all, and a trial is read back whatever is missing of it."""

import dataclasses
import hashlib
import json
import math
import os
import stat
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_sweep.runs.files import (
    hash_files,
    read_json,
    read_jsonl,
    report_folder,
    sweep_file,
    trial_folder,
    write_atomic,
    write_json,
    write_jsonl,
)
from lora_sweep.runs.records import MAX_NUMBER, EvaluationResult, EvaluationScores, TrialResult
from lora_sweep.runs.results import FINAL_STATUSES, STATUSES, has_final_outcome, load_record

# --- writing -----------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_its_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # readable by others, unlike a temporary file


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*arguments: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(type(error)):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_new_content_is_on_the_disk_before_it_gets_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(handle: int) -> None:
        steps.append("fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def record_replace(old: str, new: Path) -> None:
        steps.append("replace")
        assert Path(old).read_bytes() == b"new"
        replace(old, new)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomic(tmp_path / "file", b"new")
    assert steps == ["fsync file", "replace", "fsync folder"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_written(tmp_path: Path, number: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"quality": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"quality": number})
    assert read_json(path) == {"quality": 1.0}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, [{"loss": 1.0}, {"loss": number}])
    assert read_json(path) == {"quality": 1.0}


def test_json_is_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Fußmatte 毛毯", "values": [1, None, True]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Fußmatte 毛毯" in text
    assert text.endswith("}\n")
    assert text.count("\n") > 3


ROWS = st.lists(
    st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=8) | st.booleans(), max_size=3),
    max_size=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_any_rows_are_read_back_as_they_were_written(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    write_json(tmp_path / "a.json", {"rows": rows})
    assert read_json(tmp_path / "a.json") == {"rows": rows}


@pytest.mark.parametrize("between", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\r\n"])
def test_no_line_break_inside_a_text_breaks_a_row(tmp_path: Path, between: str) -> None:
    rows = [{"text": f"one{between}two"}, {"text": "three"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", '{"a": 1', '{"a": 1}}', "[1]", "null", "1", '"text"', "not json"])
def test_what_is_no_whole_json_object_reads_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") is None


def test_what_is_no_text_or_not_there_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "b.json") is None
    assert read_json(tmp_path / "a.json" / "below a file") is None


def test_every_truncation_of_a_result_reads_as_none(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"status": "complete", "metrics": {"quality": 61.5, "words": None}})
    whole = path.read_bytes().rstrip(b"\n")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_json(path) is None, whole[:length]


def test_absent_rows_are_none_and_a_torn_last_line_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    assert read_jsonl(path) == []
    write_jsonl(path, [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}])
    path.write_bytes(path.read_bytes() + b'\n{"step": 3, "lo')
    assert read_jsonl(path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]


def test_hashes_are_of_the_content_of_files_and_of_all_files_of_a_folder(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "adapter/a.safetensors": b"weights", "adapter/deep/b.json": b""}
    for name, content in {**files, "other": b"not asked for"}.items():
        write_atomic(tmp_path / name, content)
    hashes = hash_files(tmp_path, ["config.json", "adapter"])
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    with pytest.raises(FileNotFoundError):
        hash_files(tmp_path, ["missing"])


# --- a trial -----------------------------------------------------------------------------------------------------

EVALUATION: dict[str, Any] = {"eval_id": "e1", "status": "complete", "reason": None, "bits": 8}
TRAINING: dict[str, Any] = {"trial_id": "t1", "kind": "trial", "status": "complete", "reason": None, "bits": 4}
LOSSES = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
GENERATIONS = [{"prompt_id": "validation-0", "text": "A lamp."}]
SCORES = {
    "prompts": [{"prompt_id": "validation-0", "quality": 61, "chrf": None}],
    "means": {"quality": 61, "chrf": None},
    "references": {},
}


def fill(runs: Path, *, training: Any = None, evaluation: Any = None) -> None:
    """A trial's files as its worker leaves them, up to the results that are given."""
    folder = trial_folder(runs, "t1")
    write_json(folder.config, {"kind": "trial", "trial_id": "t1", "config": {"seed": 7}})
    write_jsonl(folder.losses, LOSSES)
    if training:
        write_json(folder.result, training)
    write_jsonl(folder.evaluation("e1").generations, GENERATIONS)
    write_json(folder.evaluation("e1").scores, SCORES)
    if evaluation:
        write_json(folder.evaluation("e1").result, evaluation)


def test_the_layout_is_the_one_that_is_written_down(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, "t1")
    names = [folder.config, folder.losses, folder.adapter, folder.result]
    evaluation = folder.evaluation("e1")
    names += [evaluation.generations, evaluation.scores, evaluation.result]
    names += [sweep_file(tmp_path, "demo"), report_folder(tmp_path, "demo")]
    assert [str(name.relative_to(tmp_path)) for name in names] == [
        "trials/t1/config.json",
        "trials/t1/losses.jsonl",
        "trials/t1/adapter",
        "trials/t1/result.json",
        "trials/t1/evals/e1/generations.jsonl",
        "trials/t1/evals/e1/scores.json",
        "trials/t1/evals/e1/result.json",
        "sweeps/demo.json",
        "sweeps/demo",
    ]


def test_a_trial_of_which_there_is_nothing_has_empty_values(tmp_path: Path) -> None:
    row = load_record(tmp_path, "t1", "e1", "r=8 attn")
    assert (row.trial_id, row.eval_id, row.kind, row.label) == ("t1", "e1", "trial", "r=8 attn")
    assert (row.status, row.reason, row.config) == (None, None, {})
    assert (row.training, row.evaluation, row.scores) == (TrialResult(), EvaluationResult(), EvaluationScores())
    assert (row.generations, row.losses) == ([], [])
    assert row.metric_mean("quality") is None


def test_a_trial_in_training_has_its_config_and_its_curve(tmp_path: Path) -> None:
    fill(tmp_path)
    row = load_record(tmp_path, "t1", "e1")
    assert row.status is None
    assert row.config == {"seed": 7}
    assert row.losses == LOSSES


def test_texts_and_scores_count_only_once_their_result_is_written(tmp_path: Path) -> None:
    fill(tmp_path, training=TRAINING)
    row = load_record(tmp_path, "t1", "e1")
    assert row.status is None  # trained, and not yet evaluated
    assert row.training == TrialResult(**TRAINING)
    assert (row.generations, row.scores) == ([], EvaluationScores())


def test_a_whole_trial_is_read_whole(tmp_path: Path) -> None:
    fill(tmp_path, training=TRAINING, evaluation=EVALUATION)
    row = load_record(tmp_path, "t1", "e1")
    assert (row.status, row.reason) == ("complete", None)
    assert (row.training, row.evaluation) == (TrialResult(**TRAINING), EvaluationResult(**EVALUATION))
    assert row.scores.prompts == {"validation-0": {"quality": 61, "chrf": None}}
    assert row.scores.means == {"quality": 61, "chrf": None}
    assert (row.generations, row.losses) == (GENERATIONS, LOSSES)
    assert row.metric_mean("quality") == 61.0
    assert row.metric_mean("chrf") is None
    assert row.metric_mean("no such metric") is None
    other = load_record(tmp_path, "t1", "e2")
    assert (other.status, other.generations, other.training) == (None, [], TrialResult(**TRAINING))


def test_a_training_that_failed_speaks_for_the_trial(tmp_path: Path) -> None:
    fill(tmp_path, training={"status": "diverged", "reason": "loss is nan at step 3"}, evaluation=EVALUATION)
    row = load_record(tmp_path, "t1", "e1")
    assert (row.status, row.reason) == ("diverged", "loss is nan at step 3")


def test_an_evaluation_that_failed_speaks_for_a_trained_trial(tmp_path: Path) -> None:
    fill(tmp_path, training=TRAINING, evaluation={"status": "oom", "reason": "out of memory"})
    row = load_record(tmp_path, "t1", "e1")
    assert (row.status, row.reason) == ("oom", "out of memory")


def test_a_baseline_says_so(tmp_path: Path) -> None:
    write_json(trial_folder(tmp_path, "b1").config, {"kind": "baseline", "config": {}})
    assert load_record(tmp_path, "b1", "e1").kind == "baseline"


def test_torn_files_count_as_absent(tmp_path: Path) -> None:
    fill(tmp_path, training=TRAINING, evaluation=EVALUATION)
    folder = trial_folder(tmp_path, "t1")
    for path in (folder.config, folder.evaluation("e1").scores, folder.evaluation("e1").result):
        path.write_text(path.read_text()[:-4])
    row = load_record(tmp_path, "t1", "e1")
    assert (row.status, row.config) == (None, {})
    assert (row.evaluation, row.scores) == (EvaluationResult(), EvaluationScores())
    folder.result.write_text("{")
    assert load_record(tmp_path, "t1", "e1").training == TrialResult()
    assert not has_final_outcome(tmp_path, "t1", "e1")


KEPT_TRIALS = Path(__file__).parents[1] / "support" / "kept_runs" / "trials"


@pytest.mark.parametrize("path", sorted(KEPT_TRIALS.rglob("result.json")), ids=lambda path: path.parent.name)
def test_no_value_of_a_result_is_lost_in_its_record(path: Path) -> None:
    content = read_json(path)
    assert content is not None
    record = (EvaluationResult if path.parent.parent.name == "evals" else TrialResult).from_json(content)
    fields = dataclasses.asdict(record)
    assert {name: fields[name] for name in content} == content


ODD: list[Any] = [None, 3, -1.5, "x", "", [], {}, [1], {"a": 1}, True, 10**400, math.inf, math.nan]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:12])
@pytest.mark.parametrize("record", [TrialResult, EvaluationResult, EvaluationScores])
def test_no_content_of_a_file_stops_its_reader(record: Any, odd: Any) -> None:
    assert isinstance(record.from_json(odd), record)
    for field in dataclasses.fields(record):
        value = getattr(record.from_json({field.name: odd}), field.name)
        allowed = {typing.get_origin(part) or part for part in typing.get_args(field.type) or (field.type,)}
        if field.type in (int | None, float | None):
            allowed |= {int}
            assert value is None or abs(value) < MAX_NUMBER
        assert type(value) in (
            allowed if typing.get_origin(field.type) is UnionType else {type(getattr(record(), field.name))}
        )


def test_a_number_of_another_type_is_unknown() -> None:
    read = TrialResult.from_json({"steps": 2.5, "train_seconds": "9", "bits": 4.0, "halved": True, "status": 3})
    assert (read.steps, read.train_seconds, read.bits, read.halved, read.status) == (None, None, 4, 1, None)
    read = TrialResult.from_json({"targets": ["q_proj"], "files": {"a": 1, "b": None}, "data": {"dropped": {}}})
    assert (read.targets, read.files, read.data.dropped) == (["q_proj"], {"a": "1"}, {})


# status of the training -> is the trial settled without an evaluation
TRAINING_SETTLES = {
    "complete": False,  # the evaluation is still to come
    "diverged": True,
    "oom": False,
    "timeout": True,
    "preempted": False,
    "killed": True,
    "invalid": True,
    "pruned": True,
    "failed": False,
}


@pytest.mark.parametrize("status", STATUSES)
def test_which_trainings_need_no_further_work(tmp_path: Path, status: str) -> None:
    fill(tmp_path, training={**TRAINING, "status": status})
    assert has_final_outcome(tmp_path, "t1", "e1") == TRAINING_SETTLES[status]
    assert (status in FINAL_STATUSES) == (TRAINING_SETTLES[status] or status == "complete")


@pytest.mark.parametrize("status", STATUSES)
def test_a_trained_trial_is_settled_by_its_evaluation(tmp_path: Path, status: str) -> None:
    fill(tmp_path, training=TRAINING, evaluation={**EVALUATION, "status": status})
    assert has_final_outcome(tmp_path, "t1", "e1") == (status in FINAL_STATUSES)
    assert not has_final_outcome(tmp_path, "t1", "e2")


@pytest.mark.parametrize("status", ["oom", "failed", "preempted"])
def test_an_old_evaluation_does_not_settle_a_trial_without_a_training(tmp_path: Path, status: str) -> None:
    fill(tmp_path, training={"status": status}, evaluation=EVALUATION)
    assert not has_final_outcome(tmp_path, "t1", "e1")


def test_nothing_is_not_settled(tmp_path: Path) -> None:
    assert not has_final_outcome(tmp_path, "t1", "e1")
    write_json(trial_folder(tmp_path, "t1").result, json.loads("{}"))
    assert not has_final_outcome(tmp_path, "t1", "e1")
