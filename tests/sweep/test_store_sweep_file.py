"""The sweep's own file: what is read is what was written, and odd values are unknown instead of an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.scripted import plan_of

from lora_sweep.errors import Refused
from lora_sweep.runs import files
from sweep.store.sweep_file import (
    SweepEntry,
    SweepFile,
    find_newest_sweep,
    is_recorded,
    list_sweeps,
    load_sweep_file,
    read_sweep_file,
    record_sweep,
    to_json,
)

KEPT = Path(__file__).parents[1] / "support" / "kept_runs"


def write(runs: Path, name: str, **content: Any) -> None:
    files.write_json(files.sweep_file(runs, name), content)


def test_a_file_of_earlier_code_is_read_whole_and_would_be_written_in_the_same_bytes(tmp_path: Path) -> None:
    sweep = read_sweep_file(KEPT, "kept")
    assert sweep is not None
    assert (len(sweep.trials), sweep.varied, sweep.split) == (6, ["lora.r", "quant.bits"], "validation")
    baselines = {entry.key for entry in sweep.trials if entry.kind == "baseline"}
    assert {entry.baseline for entry in sweep.trials if entry.kind == "trial"} == baselines
    path = files.sweep_file(tmp_path, "kept")
    files.write_json(path, to_json(sweep))
    assert path.read_bytes() == files.sweep_file(KEPT, "kept").read_bytes()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    sweep = SweepFile(
        "s",
        "command",
        "2026-01-02T03:04:05+00:00",
        ["lora.r"],
        {"model a": ["1"], "data b": ["2", "3"]},
        [SweepEntry("b", "e", "baseline", "base", None, []), SweepEntry("t", "e", "trial", "r=2", ("b", "e"))],
        "test",
        {"code": "c0de"},
    )
    files.write_json(files.sweep_file(tmp_path, "s"), to_json(sweep))
    content = json.loads(files.sweep_file(tmp_path, "s").read_text())
    assert content["sources"] == {"model a": "1", "data b": ["2", "3"]}
    assert "overrides" not in content["trials"][1]
    assert read_sweep_file(tmp_path, "s") == sweep


def test_values_that_nobody_would_write_are_unknown(tmp_path: Path) -> None:
    entry = {"trial_id": "t", "eval_id": "e", "label": 3, "baseline": ["b"], "overrides": "r=2"}
    write(tmp_path, "s", varied=[1, "lora.r"], sources=[], provenance="c0de", started=5, trials=[entry])
    sweep = read_sweep_file(tmp_path, "s")
    assert sweep == SweepFile("s", started="5", varied=["lora.r"], trials=[SweepEntry("t", "e", label="3")])


@pytest.mark.parametrize("trials", [None, {}, [3], [{"trial_id": "../x", "eval_id": "e"}], [{"trial_id": "t"}]])
def test_a_file_that_names_no_folders_is_refused_and_never_replaced(trials: Any, tmp_path: Path) -> None:
    write(tmp_path, "s", trials=trials)
    before = files.sweep_file(tmp_path, "s").read_bytes()
    for action in (
        lambda: read_sweep_file(tmp_path, "s"),
        lambda: load_sweep_file(tmp_path, "s"),
        lambda: record_sweep(plan_of(tmp_path, "s", 1), tmp_path, "s", "c", {}),
    ):
        with pytest.raises(Refused, match="sweep 's': has a file that does not list a valid trial_id and eval_id for"):
            action()
    assert files.sweep_file(tmp_path, "s").read_bytes() == before
    assert list_sweeps(tmp_path) == ["s"], "others can still be found beside it"


def test_a_name_is_refused_with_the_names_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="holds no sweep yet"):
        load_sweep_file(tmp_path, "demo")
    write(tmp_path, "demo", trials=[])
    assert read_sweep_file(tmp_path, "dema") is None
    with pytest.raises(Refused, match=r"sweep 'dema': is not there; did you mean 'demo'\?; allowed: demo"):
        load_sweep_file(tmp_path, "dema")


def test_the_newest_sweep_is_no_sweep_on_the_test_split_unless_there_is_no_other(tmp_path: Path) -> None:
    write(tmp_path, "s-test", started="2026-01-02T00:00:00+00:00", split="test", trials=[])
    assert find_newest_sweep(tmp_path) == "s-test"
    write(tmp_path, "s", started="2026-01-01T00:00:00+00:00", trials=[])
    write(tmp_path, "undated", trials=[])
    assert list_sweeps(tmp_path) == ["s-test", "s", "undated"]
    assert find_newest_sweep(tmp_path) == "s"


def test_a_plan_is_recorded_once_its_labels_and_sources_are_in_the_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "s", 2)
    assert not is_recorded(plan, tmp_path, "s")
    record_sweep(plan, tmp_path, "s", "c", None)
    assert is_recorded(plan, tmp_path, "s")
    content = json.loads(files.sweep_file(tmp_path, "s").read_text())
    content["sources"] = {"model scripted": "model-0"}
    files.write_json(files.sweep_file(tmp_path, "s"), content)
    assert not is_recorded(plan, tmp_path, "s")
