"""Carry out the decisions of ``sweep.engines.policy``: in the trial's files, in the queue and on the screen."""

import time

from lora_sweep.runs import files, results
from lora_sweep.runs.locks import describe_holder
from sweep.engines import policy
from sweep.engines.event_log import EventLog
from sweep.engines.pending import PendingTrial
from sweep.engines.policy import (
    Decision,
    EvaluateNext,
    KeepOutcome,
    LeaveUnfinished,
    RunAgain,
    RunAlone,
    WaitForOtherSweep,
    WriteOutcome,
)
from sweep.engines.queue import TrialQueue
from sweep.status.live import Screen
from sweep.store import trial_state
from sweep.trials import PlannedTrial


def apply_decision(decision: Decision, pending: PendingTrial, queue: TrialQueue, log: EventLog, screen: Screen) -> None:
    """Carry out a decision about a trial that no worker runs any more. The caller carries out KeepOutcome."""
    trial = pending.trial
    match decision:
        case WriteOutcome():
            write_outcome(decision, trial, queue, log, screen)
        case RunAlone(failed_attempt, message):
            log.record_failed_attempt(trial, failed_attempt)
            screen.print_line(f"{trial.label}: {message}")
            queue.put_first(PendingTrial(trial, trial_state.is_trained(trial, log.runs), runs_alone=True))
        case RunAgain(event, how):
            log.append_event(event, trial, **({"how": how} if how else {}))
            queue.put_first(pending)
        case EvaluateNext():
            sha256 = trial_state.hash_result(trial, log.runs)
            log.append_event("end", trial, status="trained", sha256=sha256)
            queue.put_first(PendingTrial(trial, is_trained=True, runs_alone=pending.runs_alone))
        case WaitForOtherSweep():
            wait_for_other_sweep(pending, queue, log, screen)
        case LeaveUnfinished() | KeepOutcome():
            pass


def write_outcome(outcome: WriteOutcome, trial: PlannedTrial, queue: TrialQueue, log: EventLog, screen: Screen) -> None:
    """Write an outcome that no worker could write."""
    if outcome.failed_attempt:
        log.record_failed_attempt(trial, outcome.failed_attempt)
    written = log.write_outcome(trial, outcome.status, outcome.reason)
    if written is None:  # another sweep runs the trial now, and its result will count here too
        later, is_trained = time.monotonic() + policy.BUSY_SECONDS, trial_state.is_trained(trial, log.runs)
        queue.put_last(PendingTrial(trial, is_trained, runs_alone=True, not_before=later))
    else:
        screen.print_line(f"{trial.label}: {written[0]}: {written[1]}")


def wait_for_other_sweep(pending: PendingTrial, queue: TrialQueue, log: EventLog, screen: Screen) -> None:
    """Take over the result of another sweep that runs the trial. Without a result yet, look again later."""
    trial = pending.trial
    if results.has_final_outcome(log.runs, *trial.key):
        status = str(results.read_outcome(log.runs, *trial.key).status)
        log.set_status(trial, status)
        log.append_event("found", trial, status=status)
        return
    if not pending.not_before:
        holder = describe_holder(files.trial_lock(log.runs, trial.trial_id))
        screen.print_line(f"{trial.label}: waits for {holder}, which runs it")
    pending.not_before = time.monotonic() + policy.BUSY_SECONDS
    queue.put_last(pending)
