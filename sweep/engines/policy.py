"""The rules that decide what happens to a trial when an attempt at it ends. Every engine follows them.

The rules use no process, no file and no clock: an engine passes in what it saw, and carries out the decision.
A pack can end without an outcome of its members. Any member can then be the cause, so each runs again, alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_sweep.config.schema import Launch
from sweep.store.failed_attempts import FailedAttempt, count_deaths, count_halvings
from sweep.trials import PlannedTrial

MAX_DEATHS = 3  # deaths of workers on one trial: in its first attempt and in two retries
MAX_FALSE_STARTS = 3  # workers in a row that died before they began a trial; the cause is then not a trial
BUSY_SECONDS = 1.0  # between two looks at a trial that another sweep runs
OUT_OF_MEMORY = "the system killed the worker process for its memory"


# --- what an engine saw ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One trial on one worker.

    Attributes:
        pack_size: how many trials the worker was given together.
        has_begun: whether the worker began at least one of them.
        stage: the stage that was running, ``train`` or ``evaluate``.
        timeout: the time limit that the pack reached, in words; None if it reached none.
        is_stopping: whether the whole sweep is being stopped.
        failed_before: the failed attempts at this trial before this one.
    """

    pack_size: int = 1
    has_begun: bool = True
    stage: str = "train"
    timeout: str | None = None
    is_stopping: bool = False
    failed_before: Sequence[FailedAttempt] = field(default_factory=list)


@dataclass(frozen=True)
class WorkerExit:
    """How the process of a worker ended.

    Attributes:
        how: in words, as ``signal SIGKILL`` or ``exit code 1``.
        is_out_of_memory: whether the system killed it because memory ran out.
    """

    how: str
    is_out_of_memory: bool = False


# --- decisions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeepOutcome:
    """The worker wrote the outcome of the trial, and that outcome counts."""

    status: str


@dataclass(frozen=True)
class WriteOutcome:
    """The engine has to write the outcome of the trial, because no worker could.

    If there is a ``failed_attempt``, it is recorded first.
    """

    status: str
    reason: str
    failed_attempt: FailedAttempt | None = None


@dataclass(frozen=True)
class RunAlone:
    """The trial runs again, outside of any pack. ``failed_attempt`` is recorded first, and ``message`` is printed."""

    failed_attempt: FailedAttempt
    message: str


@dataclass(frozen=True)
class RunAgain:
    """The trial is not the cause, and runs again as before. ``event`` is logged, with ``how`` if there is one."""

    event: str
    how: str | None = None


@dataclass(frozen=True)
class EvaluateNext:
    """The training is complete. The evaluation needs another base, so it goes back to the queue."""


@dataclass(frozen=True)
class WaitForOtherSweep:
    """Another sweep runs the trial. Its result will count here too."""


@dataclass(frozen=True)
class LeaveUnfinished:
    """The sweep stops. The same command will run the trial again."""


Decision = KeepOutcome | WriteOutcome | RunAlone | RunAgain | EvaluateNext | WaitForOtherSweep | LeaveUnfinished


# --- rules -------------------------------------------------------------------------------------------------------


def decide_after_report(trial: PlannedTrial, status: str, reason: str, attempt: Attempt) -> Decision:
    """Decide what happens to a trial after a worker reported the end of its stages.

    Args:
        status: the trial's status, or ``trained``, or ``busy`` (another process holds the trial's lock), or ``apart``
            (the common work of the pack failed).
        reason: why, in words.
    """
    if status == "busy":
        return WaitForOtherSweep()
    if status == "trained":
        return EvaluateNext()
    if status == "apart":
        return leave_pack(reason)
    if status == "preempted" and attempt.timeout:
        return leave_pack(attempt.timeout) if attempt.pack_size > 1 else WriteOutcome("timeout", attempt.timeout)
    if status == "preempted" and not attempt.is_stopping:  # somebody else sent the signal
        return RunAgain("preempted")
    if status == "oom" and can_halve_batch(trial, attempt):
        return halve_batch(attempt.stage)
    return KeepOutcome(status)


def decide_after_exit(trial: PlannedTrial, worker_exit: WorkerExit, attempt: Attempt) -> Decision:
    """Decide what happens to a trial after its worker's process ended without a report about it."""
    if attempt.is_stopping and not attempt.timeout:
        return LeaveUnfinished()
    if attempt.pack_size > 1 and (attempt.has_begun or attempt.timeout or worker_exit.is_out_of_memory):
        if attempt.timeout:
            return leave_pack(attempt.timeout)
        how = f"the worker process ended with {worker_exit.how}"
        return leave_pack(OUT_OF_MEMORY if worker_exit.is_out_of_memory else how)
    if attempt.timeout:
        return WriteOutcome("timeout", attempt.timeout)
    if worker_exit.is_out_of_memory:
        if can_halve_batch(trial, attempt):
            return halve_batch(attempt.stage)
        return WriteOutcome("oom", OUT_OF_MEMORY)
    if not attempt.has_begun:
        return RunAgain("false start", worker_exit.how)
    return decide_after_death(trial, worker_exit.how, attempt.failed_before)


def decide_before_start(failed_before: Sequence[FailedAttempt]) -> WriteOutcome | None:
    """The outcome of a trial that may not start again, because its workers died too often; None if it may start.

    The outcome is still missing only if the orchestrator died before it could write it.
    """
    if count_deaths(failed_before) < MAX_DEATHS:
        return None
    return WriteOutcome("killed", f"its worker died {MAX_DEATHS} times; see its log.txt")


def decide_after_death(trial: PlannedTrial, how: str, failed_before: Sequence[FailedAttempt]) -> Decision:
    """Decide about a trial whose worker died while it ran this trial alone: retry it, until MAX_DEATHS is reached."""
    deaths, death = count_deaths(failed_before) + 1, FailedAttempt("death", signal=how)
    if deaths < MAX_DEATHS:
        return RunAlone(death, f"its worker ended with {how}; retry {deaths} of {MAX_DEATHS - 1}")
    reason = f"its worker died {deaths} times, the last time with {how}; see trials/{trial.trial_id}/log.txt"
    return WriteOutcome("killed", reason, death)


def leave_pack(reason: str) -> RunAlone:
    return RunAlone(FailedAttempt("apart", reason=reason), f"to run again, alone: {reason}")


def halve_batch(stage: str) -> RunAlone:
    return RunAlone(FailedAttempt("oom", stage=stage), "out of memory, to run again with half the batch")


def can_halve_batch(trial: PlannedTrial, attempt: Attempt) -> bool:
    """Whether the settings allow halving the batch again, and the batch can be halved."""
    config = trial.config
    if config.launch.on_oom != "halve_batch":
        return False
    halvings = count_halvings(attempt.failed_before, attempt.stage)
    if attempt.stage == "evaluate":
        # If texts are sampled, another batch size gives other texts.
        return not config.eval.do_sample and config.eval.batch_size >> halvings > 1
    return config.train.per_device_train_batch_size % (2 << halvings) == 0


def find_reached_limit(settings: Launch, pack_size: int, running: float, silent: float) -> str | None:
    """The time limit that a pack has reached, in words; None if it has reached none.

    Args:
        running: seconds since the worker got the pack. The limit of the pack is the sum of its members' limits.
        silent: seconds since the worker's last event.
    """
    if settings.trial_minutes and running > settings.trial_minutes * 60 * pack_size:
        members = f" for each of {pack_size}" if pack_size > 1 else ""
        return f"more than launch.trial_minutes={settings.trial_minutes:g}{members}"
    if settings.stall_minutes and silent > settings.stall_minutes * 60:
        return f"no progress for launch.stall_minutes={settings.stall_minutes:g}"
    return None


def ends_worker(status: str) -> bool:
    """Whether a worker exits by itself after it reports this status.

    A worker that ran out of memory may hold memory that it never frees. A worker that was stopped takes no more trials.
    """
    return status in ("oom", "preempted", "apart")
