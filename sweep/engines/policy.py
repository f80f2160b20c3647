"""What an ended attempt means for its trial: pure rules that every engine follows.

They know no process, no file and no clock: an engine says what it saw, and carries out the decision that it gets.
A pack that ends without its members' outcomes says nothing about any of them, so each member runs again, alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_sweep.config.schema import Launch
from sweep.store.failed_attempts import FailedAttempt, count_deaths, count_halvings
from sweep.trials import PlannedTrial

MAX_DEATHS = 3  # workers that may die over one trial: its first attempt and two retries
MAX_FALSE_STARTS = 3  # workers in a row that died before they began a trial: then the fault is no trial's
BUSY_SECONDS = 1.0  # between two looks at a trial that another sweep runs
OUT_OF_MEMORY = "the system killed the worker process for its memory"


# --- what an engine saw ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One trial on one worker.

    Attributes:
        pack_size: how many trials the worker was given together.
        began: whether the worker began any of them.
        stage: the stage that was under way, ``train`` or ``evaluate``.
        timeout: which limit the pack reached; None if none.
        stopping: whether the whole sweep is being stopped.
        failed_before: the failed attempts at this trial before this one.
    """

    pack_size: int = 1
    began: bool = True
    stage: str = "train"
    timeout: str | None = None
    stopping: bool = False
    failed_before: Sequence[FailedAttempt] = field(default_factory=list)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker's process ended.

    Attributes:
        how: ``signal SIGKILL`` or ``exit code 1``.
        out_of_memory: whether the system killed it for its memory.
    """

    how: str
    out_of_memory: bool = False


# --- decisions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeepOutcome:
    """The worker wrote the trial's outcome; it stands."""

    status: str


@dataclass(frozen=True)
class WriteOutcome:
    """The engine writes the trial's outcome, because no worker could.

    ``failed_attempt`` is recorded before it, if there is one.
    """

    status: str
    reason: str
    failed_attempt: FailedAttempt | None = None


@dataclass(frozen=True)
class RunAlone:
    """The trial runs again, in no pack, after ``failed_attempt`` is recorded. People are told ``message``."""

    failed_attempt: FailedAttempt
    message: str


@dataclass(frozen=True)
class RunAgain:
    """Nothing is wrong with the trial: it runs again as before. ``event`` is logged, with ``how`` if there is one."""

    event: str
    how: str | None = None


@dataclass(frozen=True)
class EvaluateNext:
    """The training is complete; the evaluation needs another base, and waits for it."""


@dataclass(frozen=True)
class WaitForOther:
    """Another sweep runs the trial; its result will count here too."""


@dataclass(frozen=True)
class LeaveUnfinished:
    """The sweep is being stopped: the same command will run the trial again."""


Decision = KeepOutcome | WriteOutcome | RunAlone | RunAgain | EvaluateNext | WaitForOther | LeaveUnfinished


# --- rules -------------------------------------------------------------------------------------------------------


def decide_after_report(trial: PlannedTrial, status: str, reason: str, attempt: Attempt) -> Decision:
    """What follows when a worker reports the end of a trial's stages.

    Args:
        status: the trial's status, or ``trained``, ``busy`` (another process holds its lock) or ``apart`` (what the
            pack did together failed).
        reason: why, in words.
    """
    if status == "busy":
        return WaitForOther()
    if status == "trained":
        return EvaluateNext()
    if status == "apart":
        return leave_pack(reason)
    if status == "preempted" and attempt.timeout:
        return leave_pack(attempt.timeout) if attempt.pack_size > 1 else WriteOutcome("timeout", attempt.timeout)
    if status == "preempted" and not attempt.stopping:  # the signal came from somebody else
        return RunAgain("preempted")
    if status == "oom" and can_halve_batch(trial, attempt):
        return halve_batch(attempt.stage)
    return KeepOutcome(status)


def decide_after_exit(trial: PlannedTrial, worker_exit: WorkerExit, attempt: Attempt) -> Decision:
    """What follows when a worker's process ended before it reported the end of a trial."""
    if attempt.stopping and not attempt.timeout:
        return LeaveUnfinished()
    if attempt.pack_size > 1 and (attempt.began or attempt.timeout or worker_exit.out_of_memory):
        if attempt.timeout:
            return leave_pack(attempt.timeout)
        how = f"the worker process ended with {worker_exit.how}"
        return leave_pack(OUT_OF_MEMORY if worker_exit.out_of_memory else how)
    if attempt.timeout:
        return WriteOutcome("timeout", attempt.timeout)
    if worker_exit.out_of_memory:
        if can_halve_batch(trial, attempt):
            return halve_batch(attempt.stage)
        return WriteOutcome("oom", OUT_OF_MEMORY)
    if not attempt.began:
        return RunAgain("false start", worker_exit.how)
    return count_death(trial, worker_exit.how, attempt.failed_before)


def decide_before_start(failed_before: Sequence[FailedAttempt]) -> WriteOutcome | None:
    """The outcome of a trial that may not start any more; None for a trial that may.

    Its workers died too often, and the orchestrator died before it could write this outcome.
    """
    if count_deaths(failed_before) < MAX_DEATHS:
        return None
    return WriteOutcome("killed", f"its worker died {MAX_DEATHS} times; see its log.txt")


def count_death(trial: PlannedTrial, how: str, failed_before: Sequence[FailedAttempt]) -> Decision:
    """A worker died while it ran this trial alone: the trial runs again, up to MAX_DEATHS."""
    deaths, death = count_deaths(failed_before) + 1, FailedAttempt("death", signal=how)
    if deaths < MAX_DEATHS:
        return RunAlone(death, f"its worker ended with {how}; retry {deaths} of {MAX_DEATHS - 1}")
    reason = f"its worker ended with {how}, for the {deaths}. time; see trials/{trial.trial_id}/log.txt"
    return WriteOutcome("killed", reason, death)


def leave_pack(reason: str) -> RunAlone:
    return RunAlone(FailedAttempt("apart", reason=reason), f"to run again, alone: {reason}")


def halve_batch(stage: str) -> RunAlone:
    return RunAlone(FailedAttempt("oom", stage=stage), "out of memory, once more with half the batch")


def can_halve_batch(trial: PlannedTrial, attempt: Attempt) -> bool:
    """Whether the settings allow another halving of the batch, and it would change anything."""
    config = trial.config
    if config.launch.on_oom != "halve_batch":
        return False
    halvings = count_halvings(attempt.failed_before, attempt.stage)
    if attempt.stage == "evaluate":
        # The batch size of sampled texts changes the texts.
        return not config.eval.do_sample and config.eval.batch_size >> halvings > 1
    return config.train.per_device_train_batch_size % (2 << halvings) == 0


def find_reached_limit(settings: Launch, pack_size: int, running: float, silent: float) -> str | None:
    """Which time limit a pack has reached, in words; None if none.

    Args:
        running: seconds since the worker was given the pack, whose members share the time of all.
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

    After it ran out of memory it may hold memory that is never freed; after a stop it takes no other trial.
    """
    return status in ("oom", "preempted", "apart")
