"""Signals, limits, memory and two sweeps at once: what is said, what is kept, and that no process is left."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import faulty
from support.faulty import ended, poll, run, start
from support.invariants import check, events_of, poll_gone, processes_of, workers_of
from support.scripted import plan_of
from support.scripted_worker import STEPS

import sweep.engines.local.worker_process
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from lora_sweep.runs.records import EvaluationResult, TrialResult
from sweep.engines.local.engine import LocalEngine
from sweep.launch import launch


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "home" / "runs"


def folder(runs: Path, number: int, count: int = 3) -> files.TrialFolder:
    return files.trial_folder(runs, plan_of(runs, "s", count).trials[number].trial_id)


def outcome(runs: Path, number: int, count: int = 3) -> TrialResult | EvaluationResult:
    return results.read_outcome(runs, *plan_of(runs, "s", count).trials[number].key)


def statuses(runs: Path, count: int = 3) -> list[str | None]:
    return [outcome(runs, number, count).status for number in range(count)]


def started(runs: Path, number: int, times: int = 1, count: int = 3) -> Any:
    """Whether the log says that a trial was started so often."""
    trial = folder(runs, number, count).path.name
    return [e for e in events_of(runs, "s") if e["event"] == "start" and e["trial_id"] == trial][times - 1 :]


def at_step(runs: Path, number: int, step: int) -> bool:
    """Whether a trial's checkpoint is of this step or a later one."""
    saved = folder(runs, number).checkpoints / "checkpoint-1" / "step"
    return saved.exists() and int(saved.read_text()) >= step


# --- signals to the orchestrator ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_first_signal_saves_what_runs(runs: Path, number: signal.Signals) -> None:
    process = start(runs, "s", 3, {"ms": 1600})
    poll(lambda: at_step(runs, 0, 1))
    process.send_signal(number)
    done = ended(process)
    assert done.code == 75
    assert "Go on with:\n  python -m lora_sweep.train" in done.text
    assert statuses(runs) == ["preempted", None, None]
    said = str(outcome(runs, 0).reason)
    step = int(said.removeprefix("saved at step ").split()[0])
    assert said == f"saved at step {step} of {STEPS}"
    assert int((folder(runs, 0).checkpoints / "checkpoint-1" / "step").read_text()) == step >= 1
    assert not started(runs, 1), "something new was started"
    assert not poll_gone(runs)
    assert run(runs, "s", 3).code == 0
    check(runs, plan_of(runs, "s", 3), finished=True)
    assert not folder(runs, 0).setbacks.exists(), "a stop counted as a death"


def test_what_was_saved_is_not_trained_again(runs: Path) -> None:
    process = start(runs, "s", 1, {"ms": 4000})
    poll(lambda: at_step(runs, 0, 2))
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 75
    began = time.monotonic()
    (folder(runs, 0).checkpoints / "checkpoint-1" / "step").write_text(str(STEPS))  # nothing is left but the end
    assert run(runs, "s", 1, {"ms": 3_600_000}).code == 0
    assert time.monotonic() - began < 60
    check(runs, plan_of(runs, "s", 1), finished=True)


def test_a_second_signal_kills_what_hangs(runs: Path) -> None:
    process = start(runs, "s", 3, {"t1": "hang"}, grace_seconds=3600)
    poll(lambda: started(runs, 1))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two that come at once are one to the system
    done = ended(process, within=30)
    assert done.code == 75
    assert "Go on with:" in done.text
    assert not poll_gone(runs)
    check(runs, plan_of(runs, "s", 3), finished=False)
    assert statuses(runs) == ["complete", None, None]
    assert run(runs, "s", 3).code == 0
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_third_signal_ends_everything_at_once(runs: Path) -> None:
    process = start(runs, "s", 3, {"t1": "hang"}, grace_seconds=3600)
    poll(lambda: started(runs, 1))
    process.send_signal(signal.SIGSTOP)  # so that no turn of the loop comes between the three
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    assert ended(process, within=10).code == 75
    assert not poll_gone(runs)
    assert run(runs, "s", 3).code == 0
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_grace_is_limited_and_nothing_new_starts_in_it(runs: Path) -> None:
    process = start(runs, "s", 3, {"t0": "hang", "ms": 2000}, workers=2, grace_seconds=3)
    poll(lambda: started(runs, 0) and at_step(runs, 1, 1))
    process.send_signal(signal.SIGINT)
    assert ended(process, within=30).code == 75
    assert not poll_gone(runs)
    assert statuses(runs) == [None, "preempted", None]
    assert not started(runs, 2)


def test_a_stop_between_training_and_writing_keeps_the_training(runs: Path) -> None:
    process = start(runs, "s", 1, {"t0": "late train"})
    poll(lambda: started(runs, 0, count=1))
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 75
    assert outcome(runs, 0, 1).status == "preempted"
    assert run(runs, "s", 1).code == 0
    assert (folder(runs, 0, 1).path / "trainings").read_text() == "x", "it was trained again"
    check(runs, plan_of(runs, "s", 1), finished=True)


# --- signals to a worker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_a_worker_costs_no_attempt(runs: Path, number: signal.Signals) -> None:
    process = start(runs, "s", 2, {"ms": 1200})
    poll(lambda: at_step(runs, 0, 1))
    (worker,) = workers_of(process.pid)
    os.kill(worker, number)
    assert ended(process).code == 0
    events = events_of(runs, "s")
    kinds = Counter(event["event"] for event in events)
    assert (kinds["preempted"], kinds["start"], kinds["death"], kinds["end"]) == (1, 3, 0, 2)
    assert not folder(runs, 0, 2).setbacks.exists()
    check(runs, plan_of(runs, "s", 2), finished=True)


@pytest.mark.parametrize("whom", ["orchestrator", "both", "worker"])
def test_a_grandchild_dies_with_its_group(runs: Path, whom: str) -> None:
    process = start(runs, "s", 1, {"t0": "spawn"})
    note = folder(runs, 0, 1).path / "grandchild"
    grandchild = int(poll(lambda: note.exists() and note.read_text()))
    (worker,) = workers_of(process.pid)
    assert {process.pid, worker, grandchild} <= processes_of(runs)
    note.unlink()
    if whom == "worker":
        os.kill(worker, signal.SIGKILL)
        poll(lambda: grandchild not in processes_of(runs))
        poll(lambda: note.exists() and note.read_text())  # the second attempt's
    for victim in [process.pid] + [worker] * (whom == "both"):
        os.kill(victim, signal.SIGKILL)
    assert ended(process).code == -signal.SIGKILL
    assert not poll_gone(runs)


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["trial_minutes", "stall_minutes"])
def test_a_trial_at_its_limit_is_a_timeout(runs: Path, limit: str) -> None:
    how = {limit: 0.05, "grace_seconds": 0.2}
    done = run(runs, "s", 3, {"t1": "hang"}, **how)
    assert done.code == 1
    assert statuses(runs) == ["complete", "timeout", "complete"]
    assert f"launch.{limit}=0.05" in str(outcome(runs, 1).reason)
    assert not folder(runs, 1).setbacks.exists(), "a timeout counted as a death"
    check(runs, plan_of(runs, "s", 3), finished=True)
    if limit == "trial_minutes":
        assert run(runs, "s", 3).code == 1
        assert len(started(runs, 1)) == 1, "a timeout was tried again unasked"
        assert run(runs, "s", 3, retry="failed").code == 0
        assert len(started(runs, 1)) == 2
        assert statuses(runs) == ["complete"] * 3
        check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.parametrize("what", ["late", "late fail"])
def test_a_limit_is_no_other_trials(runs: Path, what: str) -> None:
    """A trial that ends by itself just after it was asked to stop leaves no request behind for the next."""
    done = run(runs, "s", 3, {"t0": what, "ms": 100}, trial_minutes=0.06, grace_seconds=600)
    assert statuses(runs)[1:] == ["complete", "complete"], done.text
    assert statuses(runs)[0] in ("complete", "timeout") if what == "late" else ("failed", "timeout")
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_death_after_the_result_loses_nothing(runs: Path) -> None:
    """A worker that dies with everything written is no trial's failure, however often it does."""
    run(runs, "s", 2, {"t0": "die when done"})
    assert statuses(runs, 2) == ["complete", "complete"]
    check(runs, plan_of(runs, "s", 2), finished=True)


# --- memory ------------------------------------------------------------------------------------------------------


def test_after_oom_the_next_trial_has_another_process(runs: Path) -> None:
    done = run(runs, "s", 3, {"t0": "oom"})
    assert done.code == 1
    assert statuses(runs) == ["oom", "complete", "complete"]
    events = [event for event in events_of(runs, "s") if event["event"] in ("start", "end")]
    assert [event["event"] for event in events] == ["start", "end"] * 3
    assert len(pids_of(runs)) == 2, "one process for all"
    check(runs, plan_of(runs, "s", 3), finished=True)


def pids_of(runs: Path) -> set[str]:
    """The process ids that the trials' scripts wrote down."""
    return {path.read_text() for path in (runs / "trials").glob("*/pid")}


def test_half_a_batch_after_oom(runs: Path) -> None:
    assert run(runs, "s", 2, {"t0": "oom until 1"}, on_oom="halve_batch").code == 0
    assert [result_of(runs, number)["halved"] for number in (0, 1)] == [{"train": 1}, {}]
    check(runs, plan_of(runs, "s", 2), finished=True)


def test_halving_ends(runs: Path) -> None:
    assert run(runs, "s", 2, {"t0": "oom"}, on_oom="halve_batch").code == 1
    assert statuses(runs, 2) == ["oom", "complete"]
    check(runs, plan_of(runs, "s", 2), finished=True)


def result_of(runs: Path, number: int, count: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder(runs, number, count).result.read_text())
    return found


@pytest.mark.parametrize("on_oom", ["record", "halve_batch"])
def test_the_kernels_kill_is_oom(runs: Path, on_oom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = tmp_path / "kills"
    script = {"t0": f"kernel {kills}", "t1": "die once"}
    monkeypatch.setattr(
        sweep.engines.local.worker_process, "count_oom_kills", lambda: kills.stat().st_size if kills.exists() else 0
    )
    monkeypatch.setenv("SCRIPT", json.dumps(script))
    monkeypatch.setenv("LORA_SWEEP_DEVICE", "cpu")
    monkeypatch.setenv("LORA_SWEEP_CRASH", "")
    runs.mkdir(parents=True)
    monkeypatch.chdir(runs.parent)
    plan = plan_of(runs, "s", 2, on_oom=on_oom)
    launch(plan, [], LocalEngine(faulty.WORKER))
    assert statuses(runs, 2) == ["oom", "complete"]
    assert outcome(runs, 0, 2).reason == "the system killed the worker process for its memory"
    halvings = [each for each in files.read_jsonl(folder(runs, 0, 2).setbacks) if each["how"] == "oom"]
    assert bool(halvings) == (on_oom == "halve_batch")
    assert len(files.read_jsonl(folder(runs, 1, 2).setbacks)) == 1, "a death that was no memory's"


# --- two at once -------------------------------------------------------------------------------------------------


def test_two_sweeps_run_a_shared_trial_once(runs: Path) -> None:
    both: list[subprocess.Popen[str]] = [start(runs, name, 5, {"ms": 200}) for name in ("s", "other")]
    for process in both:
        done = ended(process)
        assert done.code == 0, done.text
    for name in ("s", "other"):
        check(runs, plan_of(runs, name, 5), finished=True)
    starts = Counter(
        event["trial_id"] for name in ("s", "other") for event in events_of(runs, name) if event["event"] == "start"
    )
    assert set(starts.values()) == {1}, starts
    assert {path.read_text() for path in (runs / "trials").glob("*/trainings")} == {"x"}


def test_what_another_sweep_is_writing_is_left_alone(runs: Path) -> None:
    half = files.report_folder(runs, "other") / ".progress.json.1234.tmp"
    half.parent.mkdir(parents=True)
    half.write_text("{")
    with hold_lock(files.sweep_lock(runs, "other")) as ours:
        assert ours
        assert run(runs, "s", 1).code == 0
    assert half.exists()


def test_a_second_orchestrator_is_refused(runs: Path) -> None:
    process = start(runs, "s", 2, {"t0": "hang"}, grace_seconds=0)
    poll(lambda: started(runs, 0, count=2))
    second = run(runs, "s", 2)
    assert second.code == 78
    assert f"is run by pid {process.pid} on {os.uname().nodename}, since 20" in second.text
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 75
