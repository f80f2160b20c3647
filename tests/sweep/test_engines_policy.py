"""What an ended attempt means for its trial: pure rules, without a process, a file or a clock."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.scripted import plan_of

from lora_sweep.config.schema import Launch, Train
from sweep.engines import policy
from sweep.engines.policy import (
    MAX_DEATHS,
    OUT_OF_MEMORY,
    Attempt,
    EvaluateNext,
    KeepOutcome,
    LeaveUnfinished,
    RunAgain,
    RunAlone,
    WaitForOtherSweep,
    WorkerExit,
    WriteOutcome,
    decide_after_exit,
    decide_after_report,
    decide_before_start,
)
from sweep.store.failed_attempts import FailedAttempt
from sweep.trials import PlannedTrial

KILLED = WorkerExit("signal SIGKILL")
STARVED = WorkerExit("signal SIGKILL", is_out_of_memory=True)
DEATH = FailedAttempt("death", signal="signal SIGKILL")
LIMIT = "more than launch.trial_minutes=5"


def trial(on_oom: str = "record", batch: int = 8) -> PlannedTrial:
    planned = plan_of(Path("runs"), "a", 1, on_oom=on_oom).trials[0]
    return dataclasses.replace(
        planned, config=dataclasses.replace(planned.config, train=Train(per_device_train_batch_size=batch))
    )


def halved(count: int, stage: str = "train") -> list[FailedAttempt]:
    return [FailedAttempt("oom", stage=stage)] * count


# --- a worker reports the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["complete", "diverged", "failed", "oom"])
def test_an_outcome_that_the_worker_wrote_stands(status: str) -> None:
    for attempt in (Attempt(), Attempt(pack_size=3), Attempt(timeout=LIMIT), Attempt(is_stopping=True)):
        assert decide_after_report(trial(), status, "why", attempt) == KeepOutcome(status)


def test_a_trial_goes_on_where_it_is_not_over() -> None:
    assert decide_after_report(trial(), "trained", "", Attempt()) == EvaluateNext()
    assert decide_after_report(trial(), "busy", "", Attempt(timeout=LIMIT, is_stopping=True)) == WaitForOtherSweep()


def test_a_pack_that_failed_together_is_taken_apart() -> None:
    decision = decide_after_report(trial(), "apart", "out of memory", Attempt(pack_size=3))
    assert decision == RunAlone(FailedAttempt("apart", reason="out of memory"), "to run again, alone: out of memory")


@pytest.mark.parametrize(
    ("attempt", "decision"),
    [
        (Attempt(), RunAgain("preempted")),
        (Attempt(pack_size=3), RunAgain("preempted")),
        (Attempt(is_stopping=True), KeepOutcome("preempted")),
        (Attempt(timeout=LIMIT), WriteOutcome("timeout", LIMIT)),
        (Attempt(timeout=LIMIT, is_stopping=True), WriteOutcome("timeout", LIMIT)),
        (
            Attempt(timeout=LIMIT, pack_size=2),
            RunAlone(FailedAttempt("apart", reason=LIMIT), f"to run again, alone: {LIMIT}"),
        ),
    ],
)
def test_a_saved_trial_runs_again_unless_its_time_is_over_or_the_sweep_stops(attempt: Attempt, decision: Any) -> None:
    assert decide_after_report(trial(), "preempted", "saved at step 2", attempt) == decision


def test_out_of_memory_runs_again_with_half_the_batch_only_where_that_is_asked_for_and_helps() -> None:
    once_more = RunAlone(FailedAttempt("oom", stage="train"), "out of memory, to run again with half the batch")
    ends = KeepOutcome("oom")
    for on_oom, batch, before, decision in [
        ("halve_batch", 8, 0, once_more),
        ("halve_batch", 8, 2, once_more),
        ("halve_batch", 8, 3, ends),
        ("halve_batch", 6, 0, once_more),
        ("halve_batch", 6, 1, ends),
        ("halve_batch", 1, 0, ends),
        ("record", 8, 0, ends),
    ]:
        attempt = Attempt(failed_before=halved(before))
        assert decide_after_report(trial(on_oom, batch), "oom", "", attempt) == decision, (on_oom, batch, before)


def test_the_halvings_of_one_stage_are_none_of_the_others() -> None:
    attempt = Attempt(stage="train", failed_before=halved(3, "evaluate"))
    assert isinstance(decide_after_report(trial("halve_batch"), "oom", "", attempt), RunAlone)


def test_the_batch_of_sampled_texts_is_never_halved() -> None:
    planned, attempt = trial("halve_batch"), Attempt(stage="evaluate")
    assert policy.can_halve_batch(planned, attempt)
    assert not policy.can_halve_batch(planned, dataclasses.replace(attempt, failed_before=halved(4, "evaluate")))
    planned.config.eval.do_sample = True
    assert not policy.can_halve_batch(planned, attempt)


# --- a worker's process ends -------------------------------------------------------------------------------------


def test_a_worker_that_dies_over_one_trial_is_retried_up_to_a_limit() -> None:
    planned = trial()
    for deaths in range(MAX_DEATHS - 1):
        decision = decide_after_exit(planned, KILLED, Attempt(failed_before=[DEATH] * deaths))
        message = f"its worker ended with signal SIGKILL; retry {deaths + 1} of {MAX_DEATHS - 1}"
        assert decision == RunAlone(DEATH, message)
    attempt = Attempt(failed_before=[*[DEATH] * (MAX_DEATHS - 1), *halved(2), FailedAttempt("apart", reason="x")])
    log = f"trials/{planned.trial_id}/log.txt"
    reason = f"its worker died {MAX_DEATHS} times, the last time with signal SIGKILL; see {log}"
    assert decide_after_exit(planned, KILLED, attempt) == WriteOutcome("killed", reason, DEATH)


@pytest.mark.parametrize(
    ("worker_exit", "timeout", "reason"),
    [
        (KILLED, None, "the worker process ended with signal SIGKILL"),
        (STARVED, None, OUT_OF_MEMORY),
        (KILLED, LIMIT, LIMIT),
        (STARVED, LIMIT, LIMIT),
    ],
)
def test_a_pack_that_ends_without_outcomes_counts_for_no_member(
    worker_exit: WorkerExit, timeout: str | None, reason: str
) -> None:
    attempt = Attempt(pack_size=3, timeout=timeout, failed_before=[DEATH] * (MAX_DEATHS - 1))
    decision = decide_after_exit(trial("halve_batch"), worker_exit, attempt)
    assert decision == RunAlone(FailedAttempt("apart", reason=reason), f"to run again, alone: {reason}")


def test_a_trial_that_is_killed_at_its_limit_is_a_timeout() -> None:
    for stopping in (False, True):
        attempt = Attempt(timeout=LIMIT, is_stopping=stopping)
        assert decide_after_exit(trial(), KILLED, attempt) == WriteOutcome("timeout", LIMIT)


def test_the_systems_kill_for_memory_is_no_death() -> None:
    assert decide_after_exit(trial(), STARVED, Attempt()) == WriteOutcome("oom", OUT_OF_MEMORY)
    decision = decide_after_exit(trial("halve_batch"), STARVED, Attempt(stage="evaluate"))
    assert isinstance(decision, RunAlone)
    assert decision.failed_attempt == FailedAttempt("oom", stage="evaluate")


@pytest.mark.parametrize("pack_size", [1, 3])
def test_a_worker_that_died_before_it_began_is_no_trials_fault(pack_size: int) -> None:
    attempt = Attempt(pack_size=pack_size, has_begun=False)
    assert decide_after_exit(trial(), WorkerExit("exit code 1"), attempt) == RunAgain("false start", "exit code 1")


def test_a_stop_leaves_trials_for_the_next_command() -> None:
    for attempt in (Attempt(), Attempt(pack_size=3), Attempt(has_begun=False)):
        stopped = dataclasses.replace(attempt, is_stopping=True)
        assert decide_after_exit(trial(), KILLED, stopped) == LeaveUnfinished()


def test_a_trial_whose_outcome_an_orchestrator_did_not_live_to_write_does_not_start() -> None:
    assert decide_before_start([DEATH] * (MAX_DEATHS - 1)) is None
    refusal = decide_before_start([DEATH] * MAX_DEATHS)
    assert refusal is not None
    assert (refusal.status, refusal.failed_attempt) == ("killed", None)


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "pack_size", "running", "silent", "limit"),
    [
        ({}, 1, 1e9, 1e9, None),
        ({"trial_minutes": 5}, 1, 300, 0, None),
        ({"trial_minutes": 5}, 1, 301, 0, "more than launch.trial_minutes=5"),
        ({"trial_minutes": 5}, 3, 900, 0, None),
        ({"trial_minutes": 5}, 3, 901, 0, "more than launch.trial_minutes=5 for each of 3"),
        ({"stall_minutes": 0.5}, 3, 900, 30, None),
        ({"stall_minutes": 0.5}, 3, 900, 31, "no progress for launch.stall_minutes=0.5"),
    ],
)
def test_a_pack_has_the_time_of_all_its_members(
    settings: dict[str, float], pack_size: int, running: float, silent: float, limit: str | None
) -> None:
    launch = Launch(**{"trial_minutes": None, "stall_minutes": None, **settings})  # type: ignore[arg-type]
    assert policy.find_reached_limit(launch, pack_size, running, silent) == limit


def test_a_worker_goes_on_after_an_outcome_and_ends_after_a_stop_or_without_memory() -> None:
    assert [status for status in ("complete", "failed", "busy", "trained") if policy.ends_worker(status)] == []
    assert all(map(policy.ends_worker, ("oom", "preempted", "apart")))
