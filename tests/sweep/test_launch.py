"""The launcher over real trainings: what is done stays done, what is lost goes on, and a base is loaded once."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf
from support.scripted import WORKER, job_json, plan_of

from lora_sweep.config.schema import Config, Data, Eval, Launch, Lora, Model, Tracking, Train
from lora_sweep.errors import Refused
from lora_sweep.messages import Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from lora_sweep.worker.loop import run_pack
from lora_sweep.worker.pack import PackRunner
from sweep.engines.local import supervisor
from sweep.engines.local.engine import LocalEngine
from sweep.engines.local.worker_process import WorkerProcess
from sweep.launch import launch
from sweep.plan.make import make_plan
from sweep.resources import machine
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


def real_plan(*configs: Config) -> Plan:
    return make_plan(list(configs), strict=True)


def snapshot(runs: Path) -> dict[str, int]:
    return {str(path.relative_to(runs)): path.stat().st_mtime_ns for path in sorted(runs.rglob("*"))}


def file_times(folder: Path, *leave_out: str) -> dict[str, int]:
    return {
        name: time for name, time in snapshot(folder).items() if Path(name).suffix and Path(name).name not in leave_out
    }


def events(runs: Path, kind: str, name: str = "test") -> list[dict[str, Any]]:
    return [event for event in files.read_jsonl(files.events_file(runs, name)) if event["event"] == kind]


def no_process(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a process was started")


# --- real trainings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A sweep of two ranks that has run."""
    runs = tmp_path_factory.mktemp("runs")
    plan = real_plan(*(config(runs, lora=Lora(r=r)) for r in (2, 4)))
    outcomes = launch(plan, ["lora.r=2,4"], LocalEngine())
    assert {outcome.status for outcome in outcomes.values()} == {"complete"}
    return runs, plan


def test_a_second_run_starts_no_process_and_changes_no_file(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, plan = done
    before = snapshot(runs)
    monkeypatch.setattr(subprocess, "Popen", no_process)
    assert {outcome.status for outcome in launch(plan, ["lora.r=2,4"], LocalEngine()).values()} == {"complete"}
    assert snapshot(runs) == before


def test_one_worker_loads_a_base_once_for_all_its_trials(done: Any) -> None:
    runs, plan = done
    logs = [files.trial_folder(runs, trial.trial_id).log.read_text() for trial in plan.trials]
    assert sum(log.count("loaded tiny") for log in logs) == 1
    assert {event["worker"] for event in events(runs, "start")} == {1}


def test_every_outcome_is_acknowledged_with_the_hash_of_its_result(done: Any) -> None:
    runs, plan = done
    acknowledged = {event["trial_id"]: event["sha256"] for event in events(runs, "end")}
    for trial in plan.trials:
        path = files.trial_folder(runs, trial.trial_id).evaluation(trial.eval_id).result
        assert acknowledged[trial.trial_id] == files.hash_files(path.parent, [path.name])[path.name]


def test_a_wider_grid_and_another_evaluation_run_what_is_new_alone(done: Any) -> None:
    runs, plan = done
    old = file_times(runs / "trials")
    longer = config(runs, eval=Eval(prompts=3, validation_rows=4, max_new_tokens=6))
    wider = real_plan(*(config(runs, lora=Lora(r=r)) for r in (2, 4, 1)), longer)
    evaluated_again = [trial for trial in wider.trials if trial.config.eval == longer.eval]
    assert [trial.trial_id for trial in evaluated_again] == [trial.trial_id for trial in plan.trials[:2]]
    launch(wider, [], LocalEngine())
    assert len(events(runs, "start")) == 3 + 1 + 2
    now = file_times(runs / "trials")
    assert {path: now[path] for path in old if not path.endswith("log.txt")}.items() <= old.items()
    logs = [path for path in old if path.endswith("log.txt") and now[path] != old[path]]
    assert sorted(logs) == sorted(f"{trial.trial_id}/log.txt" for trial in evaluated_again)
    entries = files.read_json(files.sweep_file(runs, "test"))["trials"]  # type: ignore[index]
    assert {(entry["trial_id"], entry["eval_id"]) for entry in entries} == {trial.key for trial in wider.trials}
    assert [len(results.load_record(runs, *trial.key).generations) for trial in evaluated_again] == [3, 3]
    assert len(results.load_record(runs, *plan.trials[1].key).generations) == 2


@pytest.mark.slow  # test_signals kills scripted workers in the fast tier
def test_a_killed_worker_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training, killed in its third step, goes on from the checkpoint of its second to the same adapter."""
    plans = {
        name: real_plan(
            config(tmp_path / name, train=Train(max_steps=6, checkpoint_steps=checkpoints), launch=Launch(pack=1))
        )
        for name, checkpoints in (("undisturbed", None), ("killed", 2))
    }
    killed: list[int] = []
    read_events = supervisor.Supervisor.read_events

    def kill_at_step_3(self: supervisor.Supervisor, worker: WorkerProcess) -> None:
        read_events(self, worker)
        running = next(iter(self.log.progress.running.values()), None)
        if running is not None and (running.step or 0) >= 3 and running.phase == "training" and not killed:
            killed.append(worker.process.pid)
            os.killpg(worker.process.pid, signal.SIGKILL)

    trial = plans["killed"].trials[1]
    runs, job = tmp_path / "undisturbed", Job.from_json(job_json(plans["undisturbed"].trials[1]))
    assert run_pack([job], runs, PackRunner(runs, "test"), Reporter(lambda event: None)) == ["complete"]
    monkeypatch.setattr(supervisor.Supervisor, "read_events", kill_at_step_3)
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.001)
    outcomes = launch(plans["killed"], [], LocalEngine())
    assert killed
    result = outcomes[trial.key]
    assert result.status == "complete"
    assert result.training.setbacks == 1
    assert result.training.resumed_from in (2, 4)  # the kill may land a step later
    straight = results.load_record(tmp_path / "undisturbed", *trial.key)
    name = "adapter/adapter_model.safetensors"
    assert result.training.files[name] == straight.training.files[name]
    assert result.losses == straight.losses
    assert not files.trial_folder(tmp_path / "killed", trial.trial_id).checkpoints.exists()


@pytest.mark.slow
def test_trials_that_write_at_other_bits_load_each_base_once(tmp_path: Path) -> None:
    eight = dataclasses.replace(config(tmp_path).eval, quant="8bit")
    plan = real_plan(*(config(tmp_path, lora=Lora(r=r), eval=eight) for r in (2, 4)))
    outcomes = launch(plan, [], LocalEngine())
    assert {outcome.status for outcome in outcomes.values()} == {"complete"}
    logs = "".join(files.trial_folder(tmp_path, trial.trial_id).log.read_text() for trial in plan.trials)
    assert logs.count("loaded tiny") == 2
    assert [event["status"] for event in events(tmp_path, "end")].count("trained") == 2


@pytest.mark.slow
def test_a_full_memory_is_an_outcome_of_one_trial_and_half_a_batch_may_fit(tmp_path: Path) -> None:
    """A real shortage: at a batch of 8 the worker asks for more than there is."""
    huge = Train(max_steps=1, per_device_train_batch_size=8)
    plan = real_plan(config(tmp_path), config(tmp_path, train=huge))
    script = tmp_path / "worker.py"
    script.write_text(
        "from lora_sweep.worker import loop, pack\n"
        "train_pack = pack.train_pack\n"
        "def hungry(base, members, *rest):\n"
        "    import torch\n"
        "    if any(member.train.per_device_train_batch_size == 8 for member in members): torch.ones(1 << 42)\n"
        "    return train_pack(base, members, *rest)\n"
        "pack.train_pack = hungry\n"
        "loop.main()\n"
    )
    outcomes = launch(plan, [], LocalEngine([sys.executable, str(script)]))
    by_batch = {t.config.train.per_device_train_batch_size: outcomes[t.key].status for t in plan.trials[1:]}
    assert by_batch == {4: "complete", 8: "oom"}
    again = real_plan(config(tmp_path, train=huge, launch=Launch(on_oom="halve_batch")))
    outcome = launch(again, [], LocalEngine([sys.executable, str(script)]))[again.trials[1].key]
    assert outcome.status == "complete"
    assert outcome.training.per_device_train_batch_size == 4
    assert outcome.training.gradient_accumulation_steps == 2
    assert outcome.training.halved == 1


# --- scripts ---------------------------------------------------------------------------------------------------------


def test_a_running_sweep_is_refused_with_its_holders_name(tmp_path: Path) -> None:
    with (
        hold_lock(files.sweep_lock(tmp_path, "a")),
        pytest.raises(Refused, match=rf"is run by pid {os.getpid()} on .*since"),
    ):
        launch(plan_of(tmp_path, "a", 1), [], LocalEngine(WORKER))
    assert not (tmp_path / "trials").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"runs_dir = .*file.runs: cannot be written: Not a directory"):
        launch(plan_of(tmp_path / "file" / "runs", "a", 1), [], LocalEngine(WORKER))


def test_a_full_disk_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "measure_free_disk", lambda path: 10)
    with pytest.raises(Refused, match=r"runs_dir = .*: needs about .* MB, and 0.0 MB are free"):
        launch(plan_of(tmp_path, "a", 1), [], LocalEngine(WORKER))
    assert not (tmp_path / "trials").exists()


def test_a_disk_that_fills_up_stops_the_sweep_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SCRIPT", '{"t1": "disk"}')
    with pytest.raises(SystemExit) as stop:
        launch(plan_of(tmp_path, "a", 3), ["lora.r=2"], LocalEngine(WORKER))
    assert stop.value.code == 75
    said = capsys.readouterr().out
    assert "nothing can be written: [Errno 28] No space left on device; finished trials are kept. Go on with:" in said
    assert "python -m lora_sweep.train lora.r=2" in said
    monkeypatch.setenv("SCRIPT", "{}")
    assert {o.status for o in launch(plan_of(tmp_path, "a", 3), [], LocalEngine(WORKER)).values()} == {"complete"}
    assert len(events(tmp_path, "start", "a")) == 4


def test_workers_that_do_not_start_are_said_at_once_and_are_no_trials_fault(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(plan_of(tmp_path, "a", 50), [], LocalEngine([sys.executable, "-c", "import nowhere"]))
    assert stop.value.code == 1
    folder = files.report_folder(tmp_path, "a")
    assert f"workers do not start (exit code 1); see {folder}/worker-*.log" in capsys.readouterr().out
    assert "nowhere" in (folder / "worker-1.log").read_text()
    assert {o.status for o in launch(plan_of(tmp_path, "a", 50), [], LocalEngine(WORKER)).values()} == {"complete"}


def test_a_second_run_of_many_changes_nothing(tmp_path: Path) -> None:
    """What a trial and a second run cost is measured by `make bench`."""
    plan = plan_of(tmp_path, "a", 100)
    launch(plan, [], LocalEngine(WORKER))
    assert len(events(tmp_path, "end", "a")) == 100
    before = snapshot(tmp_path)
    launch(plan, [], LocalEngine(WORKER))
    assert snapshot(tmp_path) == before


def test_two_workers_share_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT", '{"ms": 40}')
    outcomes = launch(plan_of(tmp_path, "a", 12, workers=2), [], LocalEngine(WORKER))
    assert {outcome.status for outcome in outcomes.values()} == {"complete"}
    assert {event["worker"] for event in events(tmp_path, "start", "a")} == {1, 2}


def test_a_baseline_that_failed_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sweep.launch
    from hydra_plugins.local_launcher import LocalLauncher
    from sweep import compose

    plan = real_plan(config(tmp_path))
    ids = {"trial_id": plan.trials[0].trial_id, "eval_id": plan.trials[0].eval_id, "kind": "baseline"}
    ends = {key: results.load_record(tmp_path, *key) for key in (trial.key for trial in plan.trials)}
    ends = {key: dataclasses.replace(end, status="complete") for key, end in ends.items()}
    ends[plan.trials[0].key] = dataclasses.replace(ends[plan.trials[0].key], status="failed")
    assert ids
    monkeypatch.setattr(sweep.launch, "launch", lambda *args: ends)
    monkeypatch.setattr(compose, "compose_points", lambda *args: [config(tmp_path)])
    local: Any = LocalLauncher()
    local.hydra_context, local.config = Any, OmegaConf.create({"hydra": {"overrides": {"hydra": []}}})
    local.hydra_context = type("Context", (), {"config_loader": None})
    (job,) = local.launch([[]], 0)
    assert job.status == JobStatus.COMPLETED
    assert not local.is_complete


def test_the_orchestrator_loads_no_torch_and_starts_quickly() -> None:
    script = "import time; t = time.perf_counter(); import sweep.launch; print(time.perf_counter() - t); import sys; "
    script += "print('torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"
    assert time.perf_counter() - started < 20  # the figure itself is in `make bench`
