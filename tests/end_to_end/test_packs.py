"""Packs of several under a real orchestrator: whatever befalls one costs its members time, and none a result."""

import signal
from collections import Counter
from pathlib import Path

import pytest
from support.faulty import ended, poll, run, start
from support.invariants import check, events_of
from support.scripted import plan_of
from support.scripted_files import (
    find_folder,
    list_failed_attempts,
    list_pack_sizes,
    read_outcome,
    read_statuses,
)

from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "home" / "runs"


# --- how trials are put together ---------------------------------------------------------------------------------


def test_two_workers_share_a_grid_evenly(runs: Path) -> None:
    assert run(runs, "s", 3, {"ms": 60}, workers=2, pack="auto").code == 0
    given = Counter(event["worker"] for event in events_of(runs, "s") if event["event"] == "start")
    assert given == {1: 2, 2: 1}
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
@pytest.mark.parametrize(("pack", "sizes"), [("auto", [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_as_many_run_together_as_are_asked_for(runs: Path, pack: int | str, sizes: list[int]) -> None:
    assert run(runs, "s", 5, pack=pack).code == 0
    assert list_pack_sizes(runs) == sizes
    check(runs, plan_of(runs, "s", 5), finished=True)


@pytest.mark.slow
def test_a_trial_that_another_sweep_runs_joins_later(runs: Path) -> None:
    with hold_lock(files.trial_lock(runs, find_folder(runs, 1).path.name)):
        process = start(runs, "s", 3, pack=3)
        poll(lambda: read_statuses(runs) == ["complete", None, "complete"])
    assert ended(process).code == 0
    assert list_pack_sizes(runs) == [2, 1]
    assert list_failed_attempts(runs) == [[], [], []]
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_a_thousand_trials_in_packs(runs: Path) -> None:
    script = {"t7": "diverge", "t77": "die once", "t777": "fail"}
    assert ended(start(runs, "s", 1000, script, pack="auto", workers=2), within=300).code == 1
    plan = plan_of(runs, "s", 1000)
    assert Counter(results.read_outcome(runs, *trial.key).status for trial in plan.trials) == {
        "complete": 998,
        "diverged": 1,
        "failed": 1,
    }
    apart = [event for event in events_of(runs, "s") if event["event"] == "apart"]
    assert 1 <= len(apart) <= 8, "of the one pack that died"


# --- what befalls a member ---------------------------------------------------------------------------------------


def test_a_member_that_diverges_or_fails_disturbs_no_other(runs: Path) -> None:
    assert run(runs, "s", 3, {"t0": "diverge", "t1": "evaluate fail"}, pack="auto").code == 1
    assert read_statuses(runs) == ["diverged", "failed", "complete"]
    assert list_pack_sizes(runs) == [3]
    assert list_failed_attempts(runs) == [[], [], []]
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
@pytest.mark.parametrize("script", [{"together": "out of memory"}, {"t1": "oom until 1"}, {"t2": "evaluate oom"}])
def test_a_pack_without_memory_is_taken_apart(runs: Path, script: dict[str, str]) -> None:
    done = run(runs, "s", 3, script, pack=3, on_oom="halve_batch")
    assert done.code == ("t2" in script)
    assert list_pack_sizes(runs)[:4] == [3, 1, 1, 1]
    assert [attempts[:1] for attempts in list_failed_attempts(runs)].count(["apart"]) == 3 - ("t2" in script) * 2
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_a_pack_that_dies_counts_for_no_member_and_a_trial_that_dies_alone_is_killed(runs: Path) -> None:
    done = run(runs, "s", 3, {"t1": "die"}, pack=3)
    assert done.code == 1
    assert read_statuses(runs) == ["complete", "killed", "complete"]
    assert list_failed_attempts(runs) == [["apart"], ["apart", *["death"] * 3], ["apart"]]
    assert list_pack_sizes(runs) == [3, *[1] * 5]
    assert (find_folder(runs, 0).path / "trainings").read_text() == "x", "what it had trained was trained again"
    check(runs, plan_of(runs, "s", 3), finished=True)


@pytest.mark.slow
def test_workers_that_do_not_start_take_no_pack_apart(runs: Path) -> None:
    flag = runs.parent.parent / "flag"
    assert run(runs, "s", 3, pack=3, crash=f"trial locked:1:{flag}").code == 0
    assert [event["event"] for event in events_of(runs, "s")][1:4] == ["false start"] * 3
    assert list_pack_sizes(runs) == [3]
    assert list_failed_attempts(runs) == [[], [], []]


# --- limits and deaths -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_has_the_time_of_all_its_members(runs: Path) -> None:
    assert run(runs, "s", 3, {"ms": 600}, pack=3, trial_minutes=0.02).code == 0
    assert list_pack_sizes(runs) == [3]


@pytest.mark.slow
def test_a_pack_that_obeys_its_limit_is_no_timeout_yet(runs: Path) -> None:
    """Its members save, and go on alone, each with a time of its own."""
    assert run(runs, "s", 3, {"ms": 2400}, pack=3, trial_minutes=0.01).code == 1
    assert list_failed_attempts(runs)[1:] == [["apart"]] * 2
    assert list_pack_sizes(runs)[:2] == [3, 1]
    assert read_statuses(runs)[1:] == ["timeout"] * 2
    assert read_outcome(runs, 2).reason == "more than launch.trial_minutes=0.01"
    check(runs, plan_of(runs, "s", 3), finished=True)


def test_trials_of_a_pack_taken_apart_stay_apart_after_the_orchestrators_death(runs: Path) -> None:
    flag = runs.parent.parent / "flag"
    script = {"together": "out of memory"}
    assert run(runs, "s", 3, script, pack=3, crash=f"failed attempt recorded:2:{flag}").code == -signal.SIGKILL
    assert sorted(list_failed_attempts(runs)) == [[], ["apart"], ["apart"]]
    assert run(runs, "s", 3, pack=3).code == 0
    begun = [n for n, event in enumerate(events_of(runs, "s")) if event["event"] == "begin"][-1]
    kinds = [event["event"] for event in events_of(runs, "s")[begun:] if event["event"] in ("start", "end")]
    assert kinds == ["start", "end"] * 3
    check(runs, plan_of(runs, "s", 3), finished=True)
