"""What is left of a plan: which trials, how long they take, and how much of the disk they need."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.config.schema import Config, Data, Model
from lora_sweep.facts.facts import DataFacts, Facts, Linear, ModelFacts
from lora_sweep.facts.memory import MemoryForecast
from lora_sweep.runs import files
from sweep.resources.estimate import (
    BYTES_PER_PARAM,
    TEXT_BYTES,
    FinishedTrial,
    TimeEstimate,
    count_training_rows,
    estimate_disk_bytes,
    estimate_time,
    identify_base,
    list_remaining_trials,
    read_finished_trials,
)
from sweep.store.trial_state import TrialState
from sweep.trials import Key, Plan, PlannedTrial

FACTS = Facts(
    ModelFacts("m", "llama", [Linear("q_proj", 8, 8)], ["q_proj"], [], None, False, 64, 0, 8, 1, 16),
    DataFacts("d", train_rows=42),
    compute_bytes=4,
)
IDENTITY = {"model": "m", "quant": {"bits": None}, "data": {"source": "d"}}
BASE = identify_base(IDENTITY)


def planned(name: str, kind: str = "trial", params: int = 1000, **settings: Any) -> PlannedTrial:
    config = Config(model=Model(name="m", tiny="llama"), data=Data(name="d", tiny=50))
    for key, value in settings.items():
        group, _, last = key.rpartition("__")
        setattr(getattr(config, group), last, value)
    modules = ["q_proj", "v_proj"] if kind == "trial" else []
    identity = {"kind": kind, **copy.deepcopy(IDENTITY)}
    return PlannedTrial(
        name, "e", kind, name, config, FACTS, modules, params * (kind == "trial"), MemoryForecast(1, 1, 1, 1), identity
    )


def plan_of(*trials: PlannedTrial, **states: str) -> tuple[Plan, dict[Key, TrialState]]:
    """The plan, and each trial's state by its name: new unless said otherwise."""
    settled = ("done", "diverged", "timeout")
    plan = Plan(list(trials), [trial.key for trial in trials], [])
    names = {trial.key: states.get(trial.label, "new") for trial in trials}
    return plan, {key: TrialState(name, is_final=name in settled) for key, name in names.items()}


# --- what is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "expected"), [(None, ["a", "b", "c"]), ("failed", ["a", "b", "c", "e"])], ids=["as it is", "retry"]
)
def test_what_is_left_is_what_is_not_settled_and_what_is_tried_again(retry: str | None, expected: list[str]) -> None:
    trials = [planned(name, launch__retry=retry) for name in "abcde"]
    plan, states = plan_of(*trials, b="trained", c="broken", d="done", e="timeout")
    assert [trial.label for trial in list_remaining_trials(plan, states)] == expected


# --- disk ----------------------------------------------------------------------------------------------------------


def test_adapters_and_texts_of_what_is_left() -> None:
    trials = [planned("base", "baseline"), planned("a"), planned("b", params=500), planned("c"), planned("d")]
    plan, states = plan_of(*trials, c="trained", d="done")
    assert estimate_disk_bytes(plan, states, 1) == BYTES_PER_PARAM * 1500 + TEXT_BYTES * 4


def test_a_finished_plan_needs_nothing() -> None:
    assert estimate_disk_bytes(*plan_of(planned("a", train__checkpoint_steps=1), a="done"), 1) == 0


def test_checkpoints_are_those_of_the_trials_under_way_at_once() -> None:
    """Each holds the adapter and two moments; two are kept while a third is written."""

    def extra(at_once: int, **settings: Any) -> int:
        sizes = (1000, 3000, 2000)
        plain, states = plan_of(*(planned(str(i), params=size) for i, size in enumerate(sizes)))
        saving, _ = plan_of(
            *(
                planned(str(i), params=size, train__checkpoint_steps=5, **{"launch__pack": 1, **settings})
                for i, size in enumerate(sizes)
            )
        )
        return estimate_disk_bytes(saving, states, at_once) - estimate_disk_bytes(plain, states, at_once)

    assert extra(1) == 9 * BYTES_PER_PARAM * 3000
    assert extra(2) == 9 * BYTES_PER_PARAM * 5000
    assert extra(1, launch__pack=2) == extra(2), "of a pack's members too"
    assert extra(1, launch__pack="auto") == extra(3)


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 44),  # 42 rows are 11 batches of 4, the last not full
        ({"train__num_train_epochs": 2.5}, 4 * 28),
        ({"train__gradient_accumulation_steps": 2}, 8 * 6),
        ({"train__max_steps": 7, "train__num_train_epochs": 9.0}, 28),
    ],
)
def test_rows_that_a_training_sees(settings: dict[str, Any], rows: int) -> None:
    assert count_training_rows(planned("a", **settings)) == rows


def finished(
    row_seconds: float = 1.0, *evaluations: float, base: str = BASE, modules: str = "q_proj v_proj"
) -> FinishedTrial:
    return FinishedTrial(base, tuple(modules.split()), row_seconds, evaluations, "cpu")


def expected(trials: list[PlannedTrial], finished_trials: list[FinishedTrial], **states: str) -> TimeEstimate:
    plan, trial_states = plan_of(*trials, **states)
    return estimate_time(list_remaining_trials(plan, trial_states), trial_states, finished_trials)


def test_a_trial_takes_its_rows_and_a_mean_evaluation() -> None:
    finished_trials = [finished(2.0, 10.0, 20.0), finished(4.0, 30.0)]
    assert expected([planned("a")], finished_trials) == TimeEstimate(44 * 3.0 + 20.0, 1, 2)


def test_trials_with_the_same_modules_are_preferred() -> None:
    finished_trials = [finished(2.0), finished(90.0, modules="down_proj")]
    assert expected([planned("a")], finished_trials).seconds == 88.0
    assert expected([planned("a")], finished_trials[1:]).seconds == 44 * 90.0


def test_other_bases_tell_nothing() -> None:
    assert expected([planned("a")], [finished(base="another")]) == TimeEstimate(0.0, 0, 0)


def test_what_is_trained_and_what_trains_nothing_are_evaluated_alone() -> None:
    trials = [planned("a"), planned("base", "baseline"), planned("c")]
    assert expected(trials, [finished(5.0, 7.0)], a="trained", c="done") == TimeEstimate(14.0, 2, 1)


def test_a_trial_of_unknown_rows_is_not_counted() -> None:
    unknown = dataclasses.replace(planned("a"), facts=Facts(FACTS.model, DataFacts("d"), 4))
    assert expected([unknown, planned("b")], [finished(1.0)]) == TimeEstimate(44.0, 1, 1)


def result(**changes: Any) -> dict[str, Any]:
    """A complete trial's result.json: 10 steps of 4 rows in 80 s."""
    identity = {**IDENTITY, "lora": {"targets": ["q_proj"]}, "train": {"batch": 4}}
    numbers = {"steps": 10, "train_seconds": 80.0, "identity": identity, "provenance": {"device": "cpu (2 threads)"}}
    return {"kind": "trial", "status": "complete", **numbers, **changes}


def kept(runs: Path, trial_id: str, training: dict[str, Any], *evaluations: dict[str, Any]) -> None:
    folder = files.trial_folder(runs, trial_id)
    files.write_json(folder.result, training)
    for number, evaluation in enumerate(evaluations):
        files.write_json(folder.evaluation(f"e{number}").result, evaluation)


def test_results_tell_what_they_took(tmp_path: Path) -> None:
    took = {"status": "complete", "generate_seconds": 6.0}
    kept(tmp_path, "a", result(), took, {"status": "failed", "generate_seconds": 1.0}, {"status": "complete"})
    assert read_finished_trials(tmp_path) == [FinishedTrial(BASE, ("q_proj",), 2.0, (6.0,), "cpu (2 threads)")]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "diverged"},
        {"kind": "baseline"},
        {"identity": None},
        {"identity": IDENTITY},
        {"steps": 0},
        {"train_seconds": None},
        {"train_seconds": "long"},
        {"provenance": {}},
    ],
    ids=str,
)
def test_a_result_that_lacks_a_number_tells_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    kept(tmp_path, "a", result(**changes))
    assert read_finished_trials(tmp_path) == []


def test_a_folder_without_results_and_torn_files_tell_nothing(tmp_path: Path) -> None:
    assert read_finished_trials(tmp_path / "nowhere") == []
    path = files.trial_folder(tmp_path, "a").result
    path.parent.mkdir(parents=True)
    path.write_text('{"status": "comp')
    assert read_finished_trials(tmp_path) == []
