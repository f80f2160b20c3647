"""The launcher over real worker processes: what is done stays done, and a death hits one trial alone."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from lora_sweep import results
from lora_sweep.config import Config, Data, Eval, Lora, Model, Quant, Tracking, Train
from sweep import launch as launcher
from sweep.launch import launch, packs, struck
from sweep.plan import make_plan
from sweep.trials import Plan


def config(runs: Path, **changes: Any) -> Config:
    base = Config(
        model=Model(name="tiny", tiny="llama"),
        data=Data(name="tiny", tiny=60, train_rows=8),
        lora=Lora(r=2),
        train=Train(max_steps=2),
        eval=Eval(prompts=2, validation_rows=4, max_new_tokens=4),
        tracking=Tracking(backend="none"),
        runs_dir=str(runs),
        sweep_name="test",
    )
    return dataclasses.replace(base, **changes)


def plan_of(*configs: Config) -> Plan:
    return make_plan(list(configs), strict=True)


def statuses(plan: Plan, runs: Path) -> list[str | None]:
    return [results.load_result(runs, *trial.key).status for trial in plan.trials]


def snapshot(runs: Path) -> dict[str, int]:
    return {str(path.relative_to(runs)): path.stat().st_mtime_ns for path in sorted(runs.rglob("*"))}


def no_process(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a process was started")


def test_a_second_run_starts_no_process_and_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(config(tmp_path))
    first = launch(plan, ["lora.r=2"])
    assert {result.status for result in first.values()} == {"complete"}
    before = snapshot(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", no_process)
    second = launch(plan_of(config(tmp_path)), ["lora.r=2"])
    assert second == first
    assert snapshot(tmp_path) == before


def test_a_wider_grid_runs_its_new_points_and_is_the_union(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(plan_of(config(tmp_path)), [])
    old = snapshot(tmp_path / "trials")
    ran = []
    run_worker = launcher.run_worker
    monkeypatch.setattr(launcher, "run_worker", lambda pack, *rest: ran.extend(pack) or run_worker(pack, *rest))
    wider = plan_of(config(tmp_path), config(tmp_path, lora=Lora(r=4)))
    launch(wider, [])
    assert [trial.label.split()[0] for trial in ran] == ["r=4"]
    now = snapshot(tmp_path / "trials")
    assert {path: now[path] for path in old if "." in path} == {path: old[path] for path in old if "." in path}
    entries = results.read_json(results.sweep_file(tmp_path, "test"))["trials"]  # type: ignore[index]
    assert [entry["trial_id"] for entry in entries] == [trial.trial_id for trial in wider.trials]


def test_a_change_of_eval_trains_nothing_and_keeps_the_old_texts(tmp_path: Path) -> None:
    plan = plan_of(config(tmp_path))
    launch(plan, [])
    trained = snapshot(tmp_path / "trials" / plan.trials[1].trial_id)
    longer = plan_of(config(tmp_path, eval=Eval(prompts=3, validation_rows=4, max_new_tokens=6)))
    assert [t.trial_id for t in longer.trials] == [t.trial_id for t in plan.trials]
    launch(longer, [])
    now = snapshot(tmp_path / "trials" / plan.trials[1].trial_id)
    assert {p: now.get(p) for p in trained if Path(p).suffix} == {p: m for p, m in trained.items() if Path(p).suffix}
    assert statuses(longer, tmp_path) == statuses(plan, tmp_path) == ["complete", "complete"]
    assert len(results.load_result(tmp_path, *longer.trials[1].key).generations) == 3


def test_a_worker_that_is_killed_costs_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(*(config(tmp_path, lora=Lora(r=r)) for r in (1, 2, 4)))
    start = subprocess.Popen
    workers: list[Any] = []

    def killable(command: list[str], **kwargs: Any) -> Any:
        process = start(command, **kwargs)
        if "lora_sweep.worker" in command:
            workers.append(process)
        return process

    def kill_at(line: str) -> None:
        print(line)
        if "r=2" in line and "step 1/2" in line:
            os.kill(workers[-1].pid, signal.SIGKILL)

    monkeypatch.setattr(subprocess, "Popen", killable)
    monkeypatch.setattr(launcher.run_worker, "__defaults__", (kill_at,))
    outcomes = launch(plan, [])
    monkeypatch.undo()
    by_label = {trial.label.split()[0]: outcomes[trial.key] for trial in plan.trials}
    # the signal may land after the trial's last file: then nothing was lost at all
    assert {label: result.status for label, result in by_label.items() if label != "r=2"} == {
        "baseline": "complete",
        "r=1": "complete",
        "r=4": "complete",
    }
    assert by_label["r=2"].status == "killed"
    assert "SIGKILL" in (by_label["r=2"].reason or "")
    report = (results.report_folder(tmp_path, "test") / "report.md").read_text()
    assert "SIGKILL" in report
    again = launch(plan, [])
    assert {result.status for result in again.values()} == {"complete"}


def test_a_worker_dies_with_its_orchestrator(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time;"
        "code = 'from lora_sweep.worker import die_with_parent; die_with_parent(); print(1, flush=True); "
        "import time; time.sleep(60)';"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    for _ in range(200):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the child outlived its parent")


def test_a_pack_is_what_shares_a_base(tmp_path: Path) -> None:
    four, eight = Quant(4), Quant(8)
    plan = plan_of(
        *(config(tmp_path, quant=q, lora=Lora(r=r)) for r in (1, 2) for q in (four, eight)),
        config(tmp_path, quant=four, model=Model(name="tiny", tiny="gpt2")),
    )
    groups = [[trial.label for trial in pack] for pack in packs(plan.trials)]
    assert [len(group) for group in groups] == [3, 3, 2]
    assert [group[0].split()[0] for group in groups] == ["baseline"] * 3
    assert all(len({trial.config.quant.bits for trial in pack}) == 1 for pack in packs(plan.trials))


def test_whom_a_crash_hit(tmp_path: Path) -> None:
    """At one base each trial generates after its training; at two, all train before any generates."""
    same = plan_of(*(config(tmp_path, lora=Lora(r=r)) for r in (1, 2))).trials
    eight = dataclasses.replace(config(tmp_path).eval, quant="8bit")
    two = plan_of(*(config(tmp_path, lora=Lora(r=r), eval=eight, quant=Quant(4)) for r in (1, 2))).trials
    two = [trial for trial in two if trial.kind == "trial"]
    for trial in (same[1], two[0]):
        results.write_json(results.trial_folder(tmp_path, trial.trial_id).result, {"status": "complete"})
    assert struck(same[1:], tmp_path) is same[1], "its evaluation was under way"
    assert struck(two, tmp_path) is two[1], "the first was trained already"
    assert struck(two[:1], tmp_path) is two[0]


def test_a_baseline_that_failed_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins.local_launcher import LocalLauncher
    from sweep import compose

    plan = plan_of(config(tmp_path))
    launch(plan, [])
    results.trial_folder(tmp_path, plan.trials[0].trial_id).result.unlink()
    monkeypatch.setattr(launcher, "run_worker", lambda *args: 1)
    monkeypatch.setattr(compose, "compose_points", lambda *args: [config(tmp_path)])
    local: Any = LocalLauncher()
    local.hydra_context, local.config = Any, OmegaConf.create({"hydra": {"overrides": {"hydra": []}}})
    local.hydra_context = type("Context", (), {"config_loader": None})
    (job,) = local.launch([[]], 0)
    assert job.status == JobStatus.COMPLETED
    assert not local.complete


def test_one_worker_that_ends_without_any_outcome_is_an_error_of_ours(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(launcher, "run_worker", lambda *args: 0)
    with pytest.raises(RuntimeError, match="without an outcome"):
        launch(plan_of(config(tmp_path)), [])
