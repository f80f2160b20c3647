"""What is on disk for a plan's trials: states, quarantine, and the sweep's own file."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.scripted import job_json, plan_of
from support.scripted_worker import ScriptedRunner

from lora_sweep.messages import Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from lora_sweep.worker import loop
from sweep.store import trial_state
from sweep.store.sweep_file import record_sweep
from sweep.trials import Plan, PlannedTrial, make_invalid_trial


def run(trial: PlannedTrial, runs: Path, stages: list[str] | None = None) -> str:
    job = Job.from_json(job_json(trial, stages=stages or ["train", "evaluate"]))
    return loop.run_pack([job], runs, ScriptedRunner(runs, "a"), Reporter(lambda event: None))[0]


def state(trial: PlannedTrial, runs: Path) -> tuple[str, bool]:
    found = trial_state.read_trial_state(trial, runs)
    return found.name, found.is_final


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, "a", 2)


def test_states_from_new_to_done(plan: Plan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    assert state(trial, tmp_path) == ("new", False)
    (files.trial_folder(tmp_path, trial.trial_id).checkpoints / "checkpoint-1").mkdir(parents=True)
    assert state(trial, tmp_path) == ("saved", False)
    assert run(trial, tmp_path, ["train"]) == "trained"
    assert state(trial, tmp_path) == ("trained", False)
    assert run(trial, tmp_path, ["evaluate"]) == "complete"
    assert state(trial, tmp_path) == ("done", True)
    assert state(plan.trials[1], tmp_path) == ("new", False)


@pytest.mark.parametrize(
    ("status", "settled"),
    [
        ("diverged", True),
        ("timeout", True),
        ("killed", True),
        ("invalid", True),
        ("oom", False),
        ("failed", False),
        ("preempted", False),
    ],
)
def test_what_is_tried_again(status: str, settled: bool, plan: Plan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    ids = {"trial_id": trial.trial_id, "eval_id": trial.eval_id, "kind": "trial"}
    results.write_failure(tmp_path, ids, dataclasses.asdict(trial.config), {}, status, "why")
    assert trial_state.read_trial_state(trial, tmp_path) == trial_state.TrialState(status, "why", settled)


FILES = ["result.json", "config.json", "losses.jsonl", "adapter/adapter.bin"]
FILES += [f"evals/e0/{name}" for name in ("result.json", "scores.json", "generations.jsonl")]


def flip(path: Path) -> None:
    """Change one byte, and not the file's time."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("harm", [flip, tear, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_as_it_was_written_is_moved_aside_and_its_trial_runs_again(
    name: str, harm: Any, plan: Plan, tmp_path: Path
) -> None:
    trial = plan.trials[0]
    folder = files.trial_folder(tmp_path, trial.trial_id)
    run(trial, tmp_path)
    good = {file: (folder.path / file).read_bytes() for file in FILES}
    harm(folder.path / name)
    if harm is Path.unlink and name.endswith("result.json"):  # gone is not altered: the stage just runs again
        assert not trial_state.read_trial_state(trial, tmp_path).is_final
        return
    before = trial_state.read_trial_state(trial, tmp_path)
    assert before.name == "broken"
    assert str(before.reason).startswith(Path(name).name if "evals" in name else name)
    said = trial_state.prepare_trial(trial, before, tmp_path, retry_failed=False)
    assert str(before.reason) in str(said)
    (kept,) = [path for path in (tmp_path / "quarantine").iterdir() if path.is_dir()]
    assert str(kept.relative_to(tmp_path)) in str(said)
    assert folder.result.exists() == name.startswith("evals"), "an evaluation's harm costs no training"
    assert json.loads(kept.with_name(f"{kept.name}.json").read_text())["why"] == before.reason
    assert run(trial, tmp_path) == "complete"
    assert state(trial, tmp_path) == ("done", True)
    assert {file: (folder.path / file).read_bytes() for file in FILES} == good


def test_a_number_that_was_edited_is_seen(plan: Plan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    run(trial, tmp_path)
    path = files.trial_folder(tmp_path, trial.trial_id).evaluation("e0").result
    value = json.loads(path.read_text())
    value["metrics"]["quality"] += 1
    path.write_text(json.dumps(value, indent=1))
    assert trial_state.read_trial_state(trial, tmp_path).reason == "result.json was altered"


def test_an_evaluation_of_another_adapter_is_moved_aside(plan: Plan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    run(trial, tmp_path)
    folder = files.trial_folder(tmp_path, trial.trial_id)
    value = json.loads(folder.result.read_text())
    files.write_atomic(folder.adapter / "adapter.bin", b"as another machine would have trained it")
    hashes = files.hash_files(folder.path, value["files"])
    results.write_result(folder.result, {**{k: v for k, v in value.items() if k != "seal"}, "files": hashes})
    found = trial_state.read_trial_state(trial, tmp_path)
    assert (found.name, found.reason) == ("broken", "its texts are those of another adapter")
    trial_state.prepare_trial(trial, found, tmp_path, retry_failed=False)
    assert state(trial, tmp_path) == ("trained", False)
    assert folder.adapter.exists()


def test_a_large_file_is_read_again_only_where_its_time_changed(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LARGE_FILE_BYTES", 100)
    trial = plan.trials[0]
    run(trial, tmp_path)
    adapter = files.trial_folder(tmp_path, trial.trial_id).adapter / "adapter.bin"
    flip(adapter)
    assert state(trial, tmp_path) == ("done", True)
    later = files.trial_folder(tmp_path, trial.trial_id).result.stat().st_mtime_ns + 1
    os.utime(adapter, ns=(later, later))
    assert state(trial, tmp_path) == ("broken", False)


def test_two_quarantines_of_one_trial_keep_both(plan: Plan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    for _ in range(2):
        run(trial, tmp_path)
        tear(files.trial_folder(tmp_path, trial.trial_id).result)
        trial_state.prepare_trial(trial, trial_state.read_trial_state(trial, tmp_path), tmp_path, retry_failed=False)
    assert len([path for path in (tmp_path / "quarantine").iterdir() if path.is_dir()]) == 2


def test_a_trial_that_somebody_runs_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    trial = plan.trials[0]
    run(trial, tmp_path)
    tear(files.trial_folder(tmp_path, trial.trial_id).result)
    with hold_lock(files.trial_lock(tmp_path, trial.trial_id)):
        assert (
            trial_state.prepare_trial(trial, trial_state.read_trial_state(trial, tmp_path), tmp_path, retry_failed=True)
            is None
        )
    assert not (tmp_path / "quarantine").exists()


def test_retry_forgets_a_failure_and_its_deaths_and_no_result(plan: Plan, tmp_path: Path) -> None:
    done, failed = plan.trials
    run(done, tmp_path)
    ids = {"trial_id": failed.trial_id, "eval_id": failed.eval_id, "kind": "trial"}
    results.write_failure(tmp_path, ids, dataclasses.asdict(failed.config), {}, "killed", "why")
    files.append_line(files.trial_folder(tmp_path, failed.trial_id).setbacks, {"how": "death"})
    for trial in plan.trials:
        trial_state.prepare_trial(trial, trial_state.read_trial_state(trial, tmp_path), tmp_path, retry_failed=True)
    assert state(done, tmp_path) == ("done", True)
    assert state(failed, tmp_path) == ("new", False)
    assert not files.trial_folder(tmp_path, failed.trial_id).setbacks.exists()


def test_a_name_used_again_is_the_union(tmp_path: Path) -> None:
    few, many = plan_of(tmp_path, "a", 2), plan_of(tmp_path, "a", 4)
    record_sweep(many, tmp_path, "a", "first", {})
    record_sweep(few, tmp_path, "a", "second", {})
    sweep = files.read_json(files.sweep_file(tmp_path, "a"))
    assert sweep is not None
    assert {entry["trial_id"] for entry in sweep["trials"]} == {trial.trial_id for trial in many.trials}
    assert sweep["command"] == "second"


def test_a_point_that_works_now_is_no_invalid_row_any_more(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "a", 2)
    point = make_invalid_trial(plan.trials[1].config, 4, [], "the wheel could not be fetched")
    before = Plan(plan.trials[:1], plan.points, plan.varied, [point])
    for each, wanted in (
        (before, [plan.trials[0].trial_id, point.trial_id]),
        (plan, [t.trial_id for t in plan.trials]),
    ):
        record_sweep(each, tmp_path, "a", "", {})
        sweep = files.read_json(files.sweep_file(tmp_path, "a"))
        assert sweep is not None
        assert [entry["trial_id"] for entry in sweep["trials"]] == wanted


@pytest.mark.parametrize(
    ("events", "mirrored"),
    [
        ([], True),
        (["begin"], False),
        (["begin", "finish", "mirrored"], True),
        (["begin", "mirrored", "begin", "finish"], False),
    ],
)
def test_whether_wandb_shows_the_last_run(events: list[str], mirrored: bool, tmp_path: Path) -> None:
    for event in events:
        files.append_event(tmp_path, "a", event)
    assert trial_state.is_mirrored(tmp_path, "a") == mirrored


def test_an_append_after_a_torn_line_starts_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    files.append_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"b": ')
    files.append_line(path, {"c": 3})
    assert files.read_jsonl(path) == [{"a": 1}, {"c": 3}]
