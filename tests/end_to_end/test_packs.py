"""Packs of several under a real orchestrator: whatever befalls one costs its members time, and none a result."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from support import faulty
from support.faulty import ended, poll, run, start
from support.invariants import check, events_of, poll_gone, workers_of
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


def folder(runs: Path, number: int) -> files.TrialFolder:
    return files.trial_folder(runs, plan_of(runs, "s", number + 1).trials[number].trial_id)


def outcome(runs: Path, number: int) -> TrialResult | EvaluationResult:
    return results.read_outcome(runs, folder(runs, number).path.name, "e0")


def statuses(runs: Path, count: int = 3) -> list[str | None]:
    return [outcome(runs, number).status for number in range(count)]


def setbacks(runs: Path, count: int = 3) -> list[list[str]]:
    return [[each["how"] for each in files.read_jsonl(folder(runs, n).setbacks)] for n in range(count)]


def packs(runs: Path) -> list[int]:
    """How many trials each worker was given at a time, as the log of one worker after another tells."""
    found, under_way = [], set()
    for event in events_of(runs, "s"):
        if event["event"] == "start":
            if not under_way:
                found.append(0)
            found[-1] += 1
            under_way.add(event["trial_id"])
        elif event["event"] in ("end", "apart", "death", "oom", "preempted"):
            under_way.discard(event["trial_id"])
        elif event["event"] == "begin":
            under_way.clear()
    return found


def at_step(runs: Path, number: int, step: int) -> bool:
    saved = folder(runs, number).checkpoints / "checkpoint-1" / "step"
    return saved.exists() and int(saved.read_text()) >= step


# --- how trials are put together ---------------------------------------------------------------------------------


def test_two_workers_share_a_grid_evenly(runs: Path) -> None:
    assert run(runs, "s", 3, {"ms": 60}, workers=2, pack="auto").code == 0
    given = Counter(event["worker"] for event in events_of(runs, "s") if event["event"] == "start")
    assert given == {1: 2, 2: 1}
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
@pytest.mark.parametrize(("pack", "found"), [("auto", [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_as_many_run_together_as_are_asked_for(runs: Path, pack: int | str, found: list[int]) -> None:
    assert run(runs, "s", 5, pack=pack).code == 0
    assert packs(runs) == found
    check(runs, plan_of(runs, "s", 5), finished=True)


@pytest.mark.slow
def test_a_trial_that_another_sweep_runs_joins_later(runs: Path) -> None:
    with hold_lock(files.trial_lock(runs, folder(runs, 1).path.name)):
        process = start(runs, "s", 3, pack=3)
        poll(lambda: statuses(runs) == ["complete", None, "complete"])
    assert ended(process).code == 0
    assert packs(runs) == [2, 1]
    assert setbacks(runs) == [[], [], []]
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_a_thousand_trials_in_packs(runs: Path) -> None:
    script = {"t7": "diverge", "t77": "die once", "t777": "fail"}
    assert ended(start(runs, "s", 1000, script, pack="auto", workers=2), within=300).code == 1
    plan = plan_of(runs, "s", 1000)
    assert Counter(results.read_outcome(runs, *each.key).status for each in plan.trials) == {
        "complete": 998,
        "diverged": 1,
        "failed": 1,
    }
    apart = [each for each in events_of(runs, "s") if each["event"] == "apart"]
    assert 1 <= len(apart) <= 8, "of the one pack that died"


# --- what befalls a member ---------------------------------------------------------------------------------------


def test_a_member_that_diverges_or_fails_disturbs_no_other(runs: Path) -> None:
    assert run(runs, "s", 3, {"t0": "diverge", "t1": "evaluate fail"}, pack="auto").code == 1
    assert statuses(runs) == ["diverged", "failed", "complete"]
    assert packs(runs) == [3]
    assert setbacks(runs) == [[], [], []]
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
@pytest.mark.parametrize("script", [{"together": "out of memory"}, {"t1": "oom until 1"}, {"t2": "evaluate oom"}])
def test_a_pack_without_memory_is_taken_apart(runs: Path, script: dict[str, str]) -> None:
    done = run(runs, "s", 3, script, pack=3, on_oom="halve_batch")
    assert done.code == ("t2" in script)
    assert packs(runs)[:4] == [3, 1, 1, 1]
    assert [each[:1] for each in setbacks(runs)].count(["apart"]) == 3 - ("t2" in script) * 2
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_death_is_counted_for_no_member_and_who_dies_alone_is_killed(runs: Path) -> None:
    done = run(runs, "s", 3, {"t1": "die"}, pack=3)
    assert done.code == 1
    assert statuses(runs) == ["complete", "killed", "complete"]
    assert setbacks(runs) == [["apart"], ["apart", *["death"] * 3], ["apart"]]
    assert packs(runs) == [3, *[1] * 5]
    assert (folder(runs, 0).path / "trainings").read_text() == "x", "what it had trained was trained again"
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_the_kernels_kill_is_no_members_oom(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = tmp_path / "kills"
    monkeypatch.setattr(
        sweep.engines.local.worker_process, "count_oom_kills", lambda: kills.stat().st_size if kills.exists() else 0
    )
    monkeypatch.setenv("SCRIPT", json.dumps({"t1": f"kernel {kills}"}))
    monkeypatch.setenv("LORA_SWEEP_DEVICE", "cpu")
    runs.mkdir(parents=True)
    monkeypatch.chdir(runs.parent)
    launch(plan_of(runs, "s", 3, pack=3), [], LocalEngine(faulty.WORKER))
    assert statuses(runs) == ["complete", "oom", "complete"]
    assert setbacks(runs) == [["apart"]] * 3
    said = files.read_jsonl(folder(runs, 0).setbacks)[0]["reason"]
    assert said == "the system killed the worker process for its memory"


@pytest.mark.slow
def test_workers_that_do_not_start_take_no_pack_apart(runs: Path) -> None:
    flag = runs.parent.parent / "flag"
    assert run(runs, "s", 3, pack=3, crash=f"trial locked:1:{flag}").code == 0
    assert [event["event"] for event in events_of(runs, "s")][1:4] == ["false start"] * 3
    assert packs(runs) == [3]
    assert setbacks(runs) == [[], [], []]


# --- limits and signals ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_has_the_time_of_all_its_members(runs: Path) -> None:
    assert run(runs, "s", 3, {"ms": 600}, pack=3, trial_minutes=0.02).code == 0
    assert packs(runs) == [3]


@pytest.mark.parametrize("limit", ["stall_minutes", pytest.param("trial_minutes", marks=pytest.mark.slow)])
def test_a_limit_is_for_who_reaches_it_alone(runs: Path, limit: str) -> None:
    assert run(runs, "s", 3, {"t1": "hang"}, pack=3, grace_seconds=0.2, **{limit: 0.05}).code == 1
    assert statuses(runs) == ["complete", "timeout", "complete"]
    assert packs(runs) == [3, 1, 1, 1]
    assert setbacks(runs) == [["apart"]] * 3
    said = files.read_jsonl(folder(runs, 0).setbacks)[0]["reason"]
    assert f"launch.{limit}=0.05" in said
    assert outcome(runs, 1).reason == said.removesuffix(" for each of 3")
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_a_pack_that_obeys_its_limit_is_no_timeout_yet(runs: Path) -> None:
    """Its members save, and go on alone, each with a time of its own."""
    assert run(runs, "s", 3, {"ms": 2400}, pack=3, trial_minutes=0.01).code == 1
    assert setbacks(runs)[1:] == [["apart"]] * 2
    assert packs(runs)[:2] == [3, 1]
    assert statuses(runs)[1:] == ["timeout"] * 2
    assert outcome(runs, 2).reason == "more than launch.trial_minutes=0.01"
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_signal_saves_every_member_and_all_go_on_together(runs: Path) -> None:
    process = start(runs, "s", 3, {"ms": 800}, pack=3)
    poll(lambda: at_step(runs, 0, 1))
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 75
    assert statuses(runs) == ["preempted"] * 3
    assert not poll_gone(runs)
    assert [outcome(runs, n).reason for n in (1, 2)] == [f"saved at step 1 of {STEPS}"] * 2
    assert run(runs, "s", 3, pack=3).code == 0
    assert packs(runs)[1:] == [3]
    assert setbacks(runs) == [[], [], []], "a stop counted as a setback"
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_a_signal_to_the_worker_costs_no_attempt(runs: Path) -> None:
    process = start(runs, "s", 3, {"ms": 400}, pack=3)
    poll(lambda: at_step(runs, 0, 1))
    for worker in workers_of(process.pid):
        os.kill(worker, signal.SIGUSR1)
    assert ended(process).code == 0
    assert packs(runs) == [3, 3]
    assert setbacks(runs) == [[], [], []]
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_a_second_signal_is_no_setback(runs: Path) -> None:
    process = start(runs, "s", 3, {"t1": "hang"}, pack=3, grace_seconds=3600)
    poll(lambda: len([e for e in events_of(runs, "s") if e["event"] == "start"]) == 3)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two that come at once are one to the system
    assert ended(process).code == 75
    assert setbacks(runs) == [[], [], []]
    assert run(runs, "s", 3, pack=3).code == 0
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_who_was_taken_apart_stays_so_after_the_orchestrators_death(runs: Path) -> None:
    flag = runs.parent.parent / "flag"
    script = {"together": "out of memory"}
    assert run(runs, "s", 3, script, pack=3, crash=f"failed attempt recorded:2:{flag}").code == -signal.SIGKILL
    assert sorted(setbacks(runs)) == [[], ["apart"], ["apart"]]
    assert run(runs, "s", 3, pack=3).code == 0
    begun = [n for n, event in enumerate(events_of(runs, "s")) if event["event"] == "begin"][-1]
    kinds = [event["event"] for event in events_of(runs, "s")[begun:] if event["event"] in ("start", "end")]
    assert kinds == ["start", "end"] * 3
    check(runs, plan_of(runs, "s", 3), finished=True)
