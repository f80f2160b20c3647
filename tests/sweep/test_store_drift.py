"""What changed since a finished trial: said before a run, recorded with the sweep, and never a guess."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_sweep.config.schema import Config, Data, Model
from lora_sweep.runs import files, results
from lora_sweep.runs.records import Provenance
from sweep.store import drift, trial_state
from sweep.store.drift import format_drift_notes
from sweep.store.sweep_file import record_sweep

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
NOW: Json = {"versions": {"python": "3.11.7", "transformers": "5.23.0"}, "code": "c0de", "git_commit": "1"}
OLD, NEW = "file:ab12cd34ab12cd34", "file:cd34ef56cd34ef56"


def trial(trial_id: str, data: str = NEW, model: str = "folder:1", **changes: Any) -> Any:
    """What a plan holds of a trial, as far as drift and a sweep's file ask."""
    named = Model(name=changes.pop("model_name", "small")), Data(name=changes.pop("data_name", "catalogue"))
    config = Config(model=named[0], data=named[1])
    facts = SimpleNamespace(model=SimpleNamespace(fingerprint=model), data=SimpleNamespace(fingerprint=data))
    given = {
        "trial_id": trial_id,
        "eval_id": "e",
        "kind": "trial",
        "label": f"r={trial_id}",
        "baseline": None,
        **changes,
    }
    return SimpleNamespace(config=config, facts=facts, key=(trial_id, given["eval_id"]), **given)


def plan_of(*trials: Any, invalid: Any = ()) -> Any:
    return SimpleNamespace(trials=list(trials), points=[], varied=["lora.r"], invalid=list(invalid), overrides={})


def finish(runs: Path, done: Any, made: Json | None = None, evaluated: Json | None = None, **training: Any) -> None:
    """Write a trial's files as a worker does."""
    folder, config = files.trial_folder(runs, done.trial_id), done.config
    names = {"model": {"name": config.model.name}, "data": {"name": config.data.name}}
    files.write_json(folder.config, {"trial_id": done.trial_id, "kind": done.kind, "config": names})
    fingerprints = {"model": done.facts.model.fingerprint, "data": done.facts.data.fingerprint}
    result = {"status": "complete", "fingerprints": fingerprints, "provenance": made or NOW, **training}
    results.write_result(folder.result, result)
    outcome = {"status": "complete", "provenance": evaluated or made or NOW}
    results.write_result(folder.evaluation(done.eval_id).result, outcome)


def notes(plan: Any, runs: Path, now: Json = NOW) -> list[str]:
    written = {each.key: files.trial_folder(runs, each.trial_id).result.exists() for each in plan.trials}
    states = {key: trial_state.TrialState("done" if known else "new") for key, known in written.items()}
    return format_drift_notes(plan, states, runs, "s", now)


def sweep_of(runs: Path) -> Json:
    sweep = files.read_json(files.sweep_file(runs, "s"))
    assert sweep is not None
    return sweep


# --- other data, another model -----------------------------------------------------------------------------------


def test_finished_rows_of_other_data_are_said_with_what_they_were_made_from(tmp_path: Path) -> None:
    old = plan_of(*(trial(str(n), data=OLD) for n in range(5)))
    record_sweep(old, tmp_path, "s", "c", None)
    for each in old.trials[:4]:
        finish(tmp_path, each)
    finish(tmp_path, old.trials[4], status="diverged")  # in the report for its reason; no number of it is anywhere
    new = plan_of(*(trial(f"new-{n}") for n in range(5)))
    assert notes(old, tmp_path) == []
    (line,) = notes(new, tmp_path)
    what, _, after = line.partition(": they ")
    assert (
        what == "drift: 4 finished rows were made from other data (catalogue: file:ab12cd34… then, file:cd34ef56… now)"
    )
    assert after == "stay in the report, out of its ranking"


def test_another_model_and_both_are_told_apart(tmp_path: Path) -> None:
    old = plan_of(trial("a", model="hub@1"), trial("b", data=OLD, model="hub@1"), trial("c", data=OLD))
    record_sweep(old, tmp_path, "s", "c", None)
    for each in old.trials:
        finish(tmp_path, each)
    said = notes(plan_of(trial("d")), tmp_path)
    assert [line.partition(" (")[0] for line in said] == [
        "drift: 1 finished row was made from another model",
        "drift: 1 finished row was made from another model and other data",
        "drift: 1 finished row was made from other data",
    ]
    assert "(small: hub@1 then, folder:1 now; catalogue: file:ab12cd34… then, file:cd34ef56… now)" in said[1]


def test_other_names_and_sources_that_one_plan_varies_are_no_drift(tmp_path: Path) -> None:
    old = plan_of(trial("a", data=OLD), trial("b", data_name="mine", data="file:1"), trial("c", model="hub@1"))
    record_sweep(old, tmp_path, "s", "c", None)
    for each in old.trials:
        finish(tmp_path, each)
    assert len(notes(plan_of(trial("d")), tmp_path)) == 2
    assert notes(plan_of(trial("d", data_name="third", model_name="other")), tmp_path) == []
    assert notes(plan_of(trial("d"), trial("e", data=OLD), trial("f", model="hub@1")), tmp_path) == []


def test_a_file_that_says_nothing_is_no_drift(tmp_path: Path) -> None:
    assert notes(plan_of(trial("a")), tmp_path) == []
    old = plan_of(trial("a", data=OLD), trial("b", data=OLD))
    record_sweep(old, tmp_path, "s", "c", None)
    results.write_result(files.trial_folder(tmp_path, "a").result, {"status": "complete", "fingerprints": ["x"]})
    assert notes(plan_of(trial("c")), tmp_path) == []


# --- other code --------------------------------------------------------------------------------------------------


def test_done_trials_of_other_versions_and_other_code_are_counted_once_each(tmp_path: Path) -> None:
    plan = plan_of(*(trial(str(n)) for n in range(5)))
    older = {**NOW, "versions": {**NOW["versions"], "transformers": "5.22.0"}}
    finish(tmp_path, plan.trials[0], older)
    finish(tmp_path, plan.trials[1], {**older, "code": "0ld"})
    finish(tmp_path, plan.trials[2], NOW, evaluated={**NOW, "code": "0ld"})  # its numbers are of two makers
    finish(tmp_path, plan.trials[3], {**NOW, "git_commit": "2"})  # a commit can change a comment alone
    assert notes(plan, tmp_path) == [
        "drift: 3 done trials were made by other code (transformers 5.22.0 then, 5.23.0 now; our code changed)"
    ]
    assert notes(plan_of(*plan.trials[3:]), tmp_path) == []
    assert notes(plan_of(plan.trials[2]), tmp_path) == ["drift: 1 done trial was made by other code (our code changed)"]


def test_only_what_both_sides_know_is_compared() -> None:
    now = Provenance.from_json(NOW)
    assert drift.find_code_changes(Provenance(), now) == drift.find_code_changes(now, Provenance()) == {}
    assert drift.find_code_changes(Provenance(versions={"trl": "1"}, code="c0de"), now) == {}
    assert drift.find_code_changes(Provenance(device="cpu"), now) == {"our code": ("not recorded", "c0de")}
    assert drift.find_code_changes(now, Provenance(versions=now.versions)) == {}


def test_now_is_this_process_where_it_is_not_given(tmp_path: Path) -> None:
    from lora_sweep.runs.provenance import collect_code_state

    plan = plan_of(trial("a"))
    states = {("a", "e"): trial_state.TrialState("done")}
    finish(tmp_path, plan.trials[0], collect_code_state())
    assert format_drift_notes(plan, states, tmp_path, "s") == []
    finish(tmp_path, plan.trials[0], {**collect_code_state(), "code": "0ld"})
    assert format_drift_notes(plan, states, tmp_path, "s") == [
        "drift: 1 done trial was made by other code (our code changed)"
    ]


def test_a_thousand_finished_trials_take_no_time(tmp_path: Path) -> None:
    old = plan_of(*(trial(f"old-{n}", data=OLD) for n in range(500)))
    plan = plan_of(*(trial(f"new-{n}") for n in range(500)))
    record_sweep(old, tmp_path, "s", "c", None)
    for each in [*old.trials, *plan.trials]:
        folder = files.trial_folder(tmp_path, each.trial_id)
        for path in (folder.config, folder.result, folder.evaluation("e").result):
            path.parent.mkdir(parents=True, exist_ok=True)
        folder.config.write_text('{"config": {"data": {"name": "catalogue"}}}')
        fingerprints = {"data": each.facts.data.fingerprint}
        folder.result.write_text(json.dumps({"status": "complete", "fingerprints": fingerprints}))
        folder.evaluation("e").result.write_text('{"status": "complete", "provenance": {"versions": {"python": "2"}}}')
    states = {each.key: trial_state.TrialState("done") for each in plan.trials}
    started = time.perf_counter()
    said = format_drift_notes(plan, states, tmp_path, "s", NOW)
    assert time.perf_counter() - started < 1
    assert [line.split(" were")[0] for line in said] == ["drift: 500 finished rows", "drift: 500 done trials"]


# --- the sweep's file --------------------------------------------------------------------------------------------


def test_a_sweep_records_its_sources_and_with_what_its_last_work_was_done(tmp_path: Path) -> None:
    record_sweep(plan_of(trial("a"), trial("b", data_name="mine", data=OLD)), tmp_path, "s", "c", NOW)
    first = {"model small": "folder:1", "data catalogue": NEW, "data mine": OLD}
    assert (sweep_of(tmp_path)["sources"], sweep_of(tmp_path)["provenance"]) == (first, NOW)
    record_sweep(plan_of(trial("c", data="file:3")), tmp_path, "s", "c", None)
    assert sweep_of(tmp_path)["sources"] == {**first, "data catalogue": "file:3"}
    assert sweep_of(tmp_path)["provenance"] == NOW
    record_sweep(plan_of(trial("c", data="file:3")), tmp_path, "s", "c", {**NOW, "code": "later"})
    assert sweep_of(tmp_path)["provenance"]["code"] == "later"
    assert [entry["trial_id"] for entry in sweep_of(tmp_path)["trials"]] == ["a", "b", "c"]


def test_an_unchanged_sweep_without_work_changes_no_file_but_data_that_are_back_do(tmp_path: Path) -> None:
    plan = plan_of(trial("a"), trial("b", data="file:0"))
    record_sweep(plan, tmp_path, "s", "c", None)
    path = files.sweep_file(tmp_path, "s")
    before = path.read_bytes()
    assert sweep_of(tmp_path)["sources"]["data catalogue"] == sorted([NEW, "file:0"])
    record_sweep(plan_of(*plan.trials), tmp_path, "s", "spelt otherwise", None)
    assert path.read_bytes() == before
    files.write_json(path, {**sweep_of(tmp_path), "sources": {"data catalogue": "file:9", "data mine": "file:8"}})
    record_sweep(plan, tmp_path, "s", "c", None)
    sources = {"data catalogue": sorted([NEW, "file:0"]), "data mine": "file:8", "model small": "folder:1"}
    assert sweep_of(tmp_path)["sources"] == sources


def test_a_file_of_before_gains_what_it_lacks(tmp_path: Path) -> None:
    entry = {"trial_id": "z", "eval_id": "e", "kind": "trial", "label": "old", "baseline": None}
    files.write_json(files.sweep_file(tmp_path, "s"), {"name": "s", "varied": [], "trials": [entry]})
    record_sweep(plan_of(trial("a")), tmp_path, "s", "c", None)
    assert "provenance" not in sweep_of(tmp_path)
    assert sweep_of(tmp_path)["sources"] == {"model small": "folder:1", "data catalogue": NEW}
    assert [entry["trial_id"] for entry in sweep_of(tmp_path)["trials"]] == ["z", "a"]


def test_points_that_cannot_work_are_rows_too_and_once(tmp_path: Path) -> None:
    point = SimpleNamespace(trial_id="i", eval_id="e", label="r=9999", reason="too many")
    plan = plan_of(trial("b", kind="baseline"), trial("a", baseline=("b", "e")), invalid=[point])
    for _ in range(2):
        record_sweep(plan, tmp_path, "s", "c", NOW)
    entries = sweep_of(tmp_path)["trials"]
    assert [(entry["trial_id"], entry["kind"], entry["baseline"]) for entry in entries] == [
        ("b", "baseline", None),
        ("a", "trial", ["b", "e"]),
        ("i", "trial", None),
    ]
    assert entries[2] == {"trial_id": "i", "eval_id": "e", "kind": "trial", "label": "r=9999", "baseline": None}


def test_a_report_knows_no_present_code() -> None:
    modules = ("lora_sweep.runs.provenance", "sweep.store.drift")
    code = f"import sys, sweep.report.__main__; print(*(name in sys.modules for name in {modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
