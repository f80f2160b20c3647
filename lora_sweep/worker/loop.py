"""The worker: `python -m lora_sweep.worker.loop RUNS_DIR SWEEP` reads packs from stdin and writes events to stdout.

For each pack it locks the trials, runs the stages, and writes and reports how each trial ended. A ``messages.Runner``
does the work of the stages. Three rules hold for any runner: a failure in one trial ends only that trial, a failure of
the common work splits the pack, and a full disk is no trial's failure. Imports no torch before the first job.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, PackFailed
from lora_sweep.messages import Failure, Job, Reporter, Runner
from lora_sweep.runs import files, results
from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.locks import hold_lock
from lora_sweep.worker.outcomes import describe_failure, is_disk_error
from lora_sweep.worker.process import (
    append_output,
    die_with_parent,
    guard_process_group,
    watch_stop_signals,
    write_events_to,
)

MAX_TEXT_CHARACTERS = 160  # of a failure's reason, in a line for people

MakeRunner = Callable[[Path, str], Runner]  # from the runs folder and the name of the sweep


def main(make_runner: MakeRunner | None = None) -> None:
    """Run packs for the orchestrator until it sends ``end``. A test passes another ``make_runner``."""
    runs, sweep = Path(sys.argv[1]), sys.argv[2]
    with guard_process_group():
        die_with_parent()
        is_stop_requested = watch_stop_signals()
        send_event = write_events_to(os.dup(1))
        os.dup2(2, 1)  # what is printed belongs in the log, and stderr is the log
        reporter = Reporter(send_event, is_stop_requested)
        exit_code = run_messages(iter(sys.stdin.readline, ""), runs, sweep, make_runner or make_pack_runner, reporter)
    sys.exit(exit_code)


def make_pack_runner(runs: Path, sweep: str) -> Runner:
    """The runner that trains models. From here on this process holds torch.

    The garbage collector is off during the import and skips the imported modules afterwards, because they are never
    freed. Start and end of the process then take 3.4 s of a core, instead of 6.0 s (2 cores of an AMD EPYC).
    """
    gc.disable()
    from lora_sweep.worker.pack import PackRunner

    gc.freeze()
    gc.enable()
    return PackRunner(runs, sweep)


def run_messages(lines: Iterator[str], runs: Path, sweep: str, make_runner: MakeRunner, reporter: Reporter) -> int:
    """Run one pack for each line until the message ``end``.

    Returns:
        The exit code. EXIT_COMPLETE after the last pack; also after running out of memory and after a split pack,
        because the next pack needs a fresh process. EXIT_INTERRUPTED after a stop, and if the disk cannot be written:
        no trial is the cause of that, so no trial gets an outcome.
    """
    runner: Runner | None = None
    for line in lines:
        message = json.loads(line)
        if "end" in message:
            break
        runner = runner or make_runner(runs, sweep)
        jobs = [Job.from_json(content) for content in message["jobs"]]
        try:
            statuses = run_pack(jobs, runs, runner, reporter)
        except Exception as error:
            if not is_disk_error(error):
                raise
            reporter.send_event({"event": "disk", "reason": str(error)})
            return EXIT_INTERRUPTED
        if "preempted" in statuses:
            return EXIT_INTERRUPTED
        if not {"oom", "apart"}.isdisjoint(statuses):
            return EXIT_COMPLETE
    return EXIT_COMPLETE


@dataclass(frozen=True)
class LockedJob:
    """A job of a pack, its folder, its reporter, and the stack that holds the lock of its trial."""

    job: Job
    folder: files.TrialFolder
    reporter: Reporter
    lock: contextlib.ExitStack


def run_pack(jobs: Sequence[Job], runs: Path, runner: Runner, reporter: Reporter) -> list[str]:
    """Run the stages of jobs that share a base, each under the lock of its trial.

    Returns:
        The status of each job: one of results.STATUSES; ``trained`` if only its evaluation is left; ``busy`` if
        another process holds its lock; ``apart`` if the pack was split and the job has to run again, alone.
    """
    statuses: dict[str, str] = {}  # trial id: how its job ended
    with contextlib.ExitStack() as locks:
        pack: list[LockedJob] = []
        for locked in [prepare_job(job, runs, reporter, locks) for job in jobs]:
            status = lock_trial(locked, runs)
            if status is None:
                pack.append(locked)
            else:
                statuses[locked.job.trial_id] = end_job(locked, status)
        for locked in pack:
            locked.reporter.send_event({"event": "start"})
            crash_point("started")
        for stage in jobs[0].stages:
            running = [locked for locked in pack if locked.job.trial_id not in statuses]
            try:
                for locked, status in run_stage(stage, running, runs, runner, is_alone=len(pack) == 1):
                    if status != "complete" or stage == "evaluate":
                        statuses[locked.job.trial_id] = end_job(locked, status)
                    elif stage == locked.job.stages[-1]:
                        statuses[locked.job.trial_id] = end_job(locked, "trained")
            except PackFailed as error:
                for locked in running:
                    if locked.job.trial_id not in statuses:
                        statuses[locked.job.trial_id] = split_off(locked, str(error), runner)
    return [statuses[job.trial_id] for job in jobs]


def prepare_job(job: Job, runs: Path, reporter: Reporter, locks: contextlib.ExitStack) -> LockedJob:
    """Find the folder of a job and bind its reporter. Its lock is not held yet."""
    folder = files.trial_folder(runs, job.trial_id)
    job_reporter = reporter.bind_job(job, functools.partial(append_output, folder.log))
    return LockedJob(job, folder, job_reporter, locks.enter_context(contextlib.ExitStack()))


def lock_trial(locked: LockedJob, runs: Path) -> str | None:
    """Lock a trial and make its folder ready. Returns the job's status when there is nothing to run."""
    job, folder = locked.job, locked.folder
    if not locked.lock.enter_context(hold_lock(files.trial_lock(runs, job.trial_id))):
        return "busy"
    crash_point("trial locked")
    files.remove_temporary_files(folder.path)
    if results.is_trained(folder):
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # the worker that trained it died before it removed them
    if results.has_final_outcome(runs, job.trial_id, job.eval_id):  # another sweep ran it in between
        return str(results.read_outcome(runs, job.trial_id, job.eval_id).status)
    results.remove_failures(folder, job.eval_id)
    return None


def run_stage(
    stage: str, pack: Sequence[LockedJob], runs: Path, runner: Runner, is_alone: bool
) -> Iterator[tuple[LockedJob, str]]:
    """Run a stage of each job. Yields each job with the status of its stage, as soon as the result is written.

    Raises:
        PackFailed: the common work of several jobs failed, or one of them ran out of memory. The memory may be enough
            for it alone.
        Exception: the disk cannot be written.
    """
    waiting: dict[str, LockedJob] = {}
    for locked in pack:
        status = read_stage_status(stage, locked)
        if status is None:
            waiting[locked.job.trial_id] = locked
        else:
            yield locked, status
    jobs, reporters = [locked.job for locked in waiting.values()], [locked.reporter for locked in waiting.values()]
    outcomes = (runner.train if stage == "train" else runner.evaluate)(jobs, reporters)
    while waiting:
        for locked, failure in run_next(outcomes, list(waiting.values()), runner, is_alone):
            del waiting[locked.job.trial_id]
            if failure is None:
                crash_point("stage done")
                yield locked, "complete"
                continue
            if failure.status == "oom" and not is_alone:
                raise PackFailed(failure.reason)
            record_failure(locked, failure, runs, runner)
            yield locked, failure.status


def read_stage_status(stage: str, locked: LockedJob) -> str | None:
    """The status in the result.json of a stage; None when the stage has no result yet."""
    folder = locked.folder
    if stage == "train":
        return results.read_trial_result(folder).status
    return results.read_evaluation_result(folder.evaluation(locked.job.eval_id)).status


def run_next(
    outcomes: Iterator[tuple[Job, Failure | None]], waiting: Sequence[LockedJob], runner: Runner, is_alone: bool
) -> list[tuple[LockedJob, Failure | None]]:
    """Run until the stage of the next job has ended. What is printed meanwhile goes to the first waiting job's log.

    Returns:
        One job and its failure. After an error that concerns all waiting jobs, as a request to stop does, all of them.

    Raises:
        PackFailed: the common work of several jobs failed.
        Exception: the disk cannot be written.
    """
    with waiting[0].reporter.capture_output():
        try:
            job, job_failure = next(outcomes)
        except Exception as error:
            if is_disk_error(error):
                raise
            failure = describe_failure(error, runner.is_out_of_memory)
            if failure.status != "preempted" and not is_alone:
                raise PackFailed(failure.reason) from error
            return [(locked, failure) for locked in waiting]
    return [(locked, job_failure) for locked in waiting if locked.job.trial_id == job.trial_id]


def record_failure(locked: LockedJob, failure: Failure, runs: Path, runner: Runner) -> None:
    """Write a failure as the result of its trial, and show it to people and in the tracker."""
    job = locked.job
    crash_point("before failure")
    config = dataclasses.asdict(job.config)
    results.write_failure(runs, job.ids, config, job.facts, failure.status, failure.reason)
    first_line = failure.reason.splitlines()[0][:MAX_TEXT_CHARACTERS]
    locked.reporter.report_text(f"{job.label}: {failure.status}: {first_line}")
    with locked.reporter.capture_output():
        runner.mirror_failure(job, failure)


def split_off(locked: LockedJob, reason: str, runner: Runner) -> str:
    """End a job whose pack failed. It gets no result: it runs again, alone."""
    with locked.reporter.capture_output():
        print(time.strftime("%H:%M:%S"), f"to run again, alone: {reason}", file=sys.stderr, flush=True)
        runner.mirror_failure(locked.job, Failure("preempted", reason))
    return end_job(locked, "apart", reason=reason)


def end_job(locked: LockedJob, status: str, **details: str) -> str:
    """Free the lock of a trial, and report that its job ended. Returns the status."""
    locked.lock.close()
    crash_point("before end")
    locked.reporter.send_event({"event": "end", "status": status, **details})
    crash_point("end reported")
    return status


if __name__ == "__main__":
    main()
