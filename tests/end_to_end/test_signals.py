"""Signals, limits, memory and two sweeps at once: what is said, what is kept, and that no process is left."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faulty import ended, poll, run, start
from support.invariants import check, events_of, poll_gone, processes_of, workers_of
from support.scripted import plan_of
from support.scripted_files import (
    find_folder,
    list_failed_attempts,
    list_pack_sizes,
    list_starts,
    read_outcome,
    read_result,
    read_saved_step,
    read_statuses,
)
from support.scripted_worker import STEPS

import sweep.engines.local.worker_process
from lora_sweep.runs import files
from lora_sweep.runs.locks import hold_lock


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "home" / "runs"


# --- signals to the orchestrator ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "pack"), [(signal.SIGINT, 1), (signal.SIGTERM, 3), (signal.SIGUSR1, 1), (signal.SIGUSR2, 3)]
)
def test_a_first_signal_saves_what_runs(runs: Path, number: signal.Signals, pack: int) -> None:
    process = start(runs, "s", 3, {"ms": 1600}, pack=pack)
    poll(lambda: read_saved_step(runs, 0) >= 1)
    process.send_signal(number)
    done = ended(process)
    assert done.code == 75
    assert "Go on with:\n  python -m lora_sweep.train" in done.text
    assert read_statuses(runs) == (["preempted", None, None] if pack == 1 else ["preempted"] * 3)
    for member in range(pack):
        step = read_saved_step(runs, member)
        assert step >= 1
        assert read_outcome(runs, member).reason == f"saved at step {step} of {STEPS}"
    assert bool(list_starts(runs, 1)) == (pack == 3), "something new was started"
    assert not poll_gone(runs)
    assert run(runs, "s", 3, pack=pack).code == 0
    assert list_pack_sizes(runs)[1:] == ([1] * 3 if pack == 1 else [3])
    assert list_failed_attempts(runs) == [[], [], []], "a stop counted as a failed attempt"
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_what_was_saved_is_not_trained_again(runs: Path) -> None:
    process = start(runs, "s", 1, {"ms": 4000})
    poll(lambda: read_saved_step(runs, 0) >= 2)
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 75
    began = time.monotonic()
    (find_folder(runs, 0).checkpoints / "checkpoint-1" / "step").write_text(str(STEPS))  # nothing is left but the end
    assert run(runs, "s", 1, {"ms": 3_600_000}).code == 0
    assert time.monotonic() - began < 60
    check(runs, plan_of(runs, "s", 1), finished=True)


@pytest.mark.parametrize("pack", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_second_signal_kills_what_hangs(runs: Path, pack: int) -> None:
    process = start(runs, "s", 3, {"t1": "hang"}, grace_seconds=3600, pack=pack)
    poll(lambda: all(list_starts(runs, number) for number in ((1,) if pack == 1 else (0, 1, 2))))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two that come at once are one to the system
    done = ended(process, within=30)
    assert done.code == 75
    assert "Go on with:" in done.text
    assert not poll_gone(runs)
    check(runs, plan_of(runs, "s", 3), finished=False)
    if pack == 1:
        assert read_statuses(runs) == ["complete", None, None]
    assert list_failed_attempts(runs) == [[], [], []]
    assert run(runs, "s", 3, pack=pack).code == 0
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_third_signal_ends_everything_at_once(runs: Path) -> None:
    process = start(runs, "s", 3, {"t1": "hang"}, grace_seconds=3600)
    poll(lambda: list_starts(runs, 1))
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
    poll(lambda: list_starts(runs, 0) and read_saved_step(runs, 1) >= 1)
    process.send_signal(signal.SIGINT)
    assert ended(process, within=30).code == 75
    assert not poll_gone(runs)
    assert read_statuses(runs) == [None, "preempted", None]
    assert not list_starts(runs, 2)


def test_a_stop_between_training_and_writing_keeps_the_training(runs: Path) -> None:
    process = start(runs, "s", 1, {"t0": "late train"})
    poll(lambda: list_starts(runs, 0))
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 75
    assert read_outcome(runs, 0).status == "preempted"
    assert run(runs, "s", 1).code == 0
    assert (find_folder(runs, 0).path / "trainings").read_text() == "x", "it was trained again"
    check(runs, plan_of(runs, "s", 1), finished=True)


# --- signals to a worker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "pack"), [(signal.SIGTERM, 1), (signal.SIGUSR2, 3)])
def test_a_signal_to_a_worker_costs_no_attempt(runs: Path, number: signal.Signals, pack: int) -> None:
    count = 2 if pack == 1 else 3
    process = start(runs, "s", count, {"ms": 1200 if pack == 1 else 400}, pack=pack)
    poll(lambda: read_saved_step(runs, 0) >= 1)
    (worker,) = workers_of(process.pid)
    os.kill(worker, number)
    assert ended(process).code == 0
    kinds = Counter(event["event"] for event in events_of(runs, "s"))
    assert (kinds["preempted"], kinds["start"], kinds["death"], kinds["end"]) == (pack, count + pack, 0, count)
    if pack == 3:
        assert list_pack_sizes(runs) == [3, 3]
    assert list_failed_attempts(runs, count) == [[]] * count
    check(runs, plan_of(runs, "s", count), finished=True)


@pytest.mark.parametrize("whom", ["orchestrator", "both", "worker"])
def test_a_grandchild_dies_with_its_group(runs: Path, whom: str) -> None:
    process = start(runs, "s", 1, {"t0": "spawn"})
    note = find_folder(runs, 0).path / "grandchild"
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
    assert read_statuses(runs) == ["complete", "timeout", "complete"]
    assert f"launch.{limit}=0.05" in str(read_outcome(runs, 1).reason)
    assert not find_folder(runs, 1).setbacks.exists(), "a timeout counted as a death"
    check(runs, plan_of(runs, "s", 3), finished=True)
    if limit == "trial_minutes":
        assert run(runs, "s", 3).code == 1
        assert len(list_starts(runs, 1)) == 1, "a timeout was tried again unasked"
        assert run(runs, "s", 3, retry="failed").code == 0
        assert len(list_starts(runs, 1)) == 2
        assert read_statuses(runs) == ["complete"] * 3
        check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.parametrize("action", ["late", "late fail"])
def test_a_request_to_stop_ends_with_its_trial(runs: Path, action: str) -> None:
    """A trial that ends by itself just after it was asked to stop leaves no request behind for the next."""
    done = run(runs, "s", 3, {"t0": action, "ms": 100}, trial_minutes=0.06, grace_seconds=600)
    assert read_statuses(runs)[1:] == ["complete", "complete"], done.text
    assert read_statuses(runs)[0] in (("complete", "timeout") if action == "late" else ("failed", "timeout"))
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_death_after_the_result_loses_nothing(runs: Path) -> None:
    """A worker that dies with everything written is no trial's failure, however often it does."""
    run(runs, "s", 2, {"t0": "die when done"})
    assert read_statuses(runs, 2) == ["complete", "complete"]
    check(runs, plan_of(runs, "s", 2), finished=True)


@pytest.mark.parametrize("limit", ["stall_minutes", pytest.param("trial_minutes", marks=pytest.mark.slow)])
def test_in_a_pack_only_the_trial_that_reaches_a_limit_is_a_timeout(runs: Path, limit: str) -> None:
    assert run(runs, "s", 3, {"t1": "hang"}, pack=3, grace_seconds=0.2, **{limit: 0.05}).code == 1
    assert read_statuses(runs) == ["complete", "timeout", "complete"]
    assert list_pack_sizes(runs) == [3, 1, 1, 1]
    assert list_failed_attempts(runs) == [["apart"]] * 3
    reason = files.read_jsonl(find_folder(runs, 0).setbacks)[0]["reason"]
    assert f"launch.{limit}=0.05" in reason
    assert read_outcome(runs, 1).reason == reason.removesuffix(" for each of 3")
    check(runs, plan_of(runs, "s", 3), finished=True)


# --- memory ------------------------------------------------------------------------------------------------------


def test_after_oom_the_next_trial_has_another_process(runs: Path) -> None:
    done = run(runs, "s", 3, {"t0": "oom"})
    assert done.code == 1
    assert read_statuses(runs) == ["oom", "complete", "complete"]
    events = [event for event in events_of(runs, "s") if event["event"] in ("start", "end")]
    assert [event["event"] for event in events] == ["start", "end"] * 3
    assert len(list_pids(runs)) == 2, "one process for all"
    check(runs, plan_of(runs, "s", 3), finished=True)


def list_pids(runs: Path) -> set[str]:
    """The process ids that the trials' scripts wrote down."""
    return {path.read_text() for path in (runs / "trials").glob("*/pid")}


def test_half_a_batch_after_oom(runs: Path) -> None:
    assert run(runs, "s", 2, {"t0": "oom until 1"}, on_oom="halve_batch").code == 0
    assert [read_result(runs, number)["halved"] for number in (0, 1)] == [{"train": 1}, {}]
    check(runs, plan_of(runs, "s", 2), finished=True)


def test_halving_ends(runs: Path) -> None:
    assert run(runs, "s", 2, {"t0": "oom"}, on_oom="halve_batch").code == 1
    assert read_statuses(runs, 2) == ["oom", "complete"]
    check(runs, plan_of(runs, "s", 2), finished=True)


@pytest.fixture
def run_with_kernel(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``run_with_kernel(count, script, **settings)``: a sweep in which ``kernel`` is a kill for memory."""
    kills = tmp_path / "kills"
    monkeypatch.setattr(
        sweep.engines.local.worker_process, "count_oom_kills", lambda: kills.stat().st_size if kills.exists() else 0
    )

    def run_script(count: int, script: dict[str, str], **settings: Any) -> None:
        actions = {label: f"kernel {kills}" if action == "kernel" else action for label, action in script.items()}
        run(runs, "s", count, actions, **settings)

    return run_script


@pytest.mark.parametrize("on_oom", ["record", "halve_batch"])
def test_the_kernels_kill_is_oom(runs: Path, run_with_kernel: Callable[..., None], on_oom: str) -> None:
    run_with_kernel(2, {"t0": "kernel", "t1": "die once"}, on_oom=on_oom)
    assert read_statuses(runs, 2) == ["oom", "complete"]
    assert read_outcome(runs, 0).reason == "the system killed the worker process for its memory"
    halvings = [how for how in list_failed_attempts(runs, 2)[0] if how == "oom"]
    assert bool(halvings) == (on_oom == "halve_batch")
    assert len(list_failed_attempts(runs, 2)[1]) == 1, "a death that memory did not cause"


@pytest.mark.slow
def test_the_kernels_kill_of_a_pack_is_the_oom_of_no_member(runs: Path, run_with_kernel: Callable[..., None]) -> None:
    run_with_kernel(3, {"t1": "kernel"}, pack=3)
    assert read_statuses(runs) == ["complete", "oom", "complete"]
    assert list_failed_attempts(runs) == [["apart"]] * 3
    reason = files.read_jsonl(find_folder(runs, 0).setbacks)[0]["reason"]
    assert reason == "the system killed the worker process for its memory"


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
    poll(lambda: list_starts(runs, 0))
    second = run(runs, "s", 2)
    assert second.code == 78
    assert f"is run by pid {process.pid} on {os.uname().nodename}, since 20" in second.text
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 75
