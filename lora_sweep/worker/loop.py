"""The process that owns a device and runs trials: `python -m lora_sweep.worker.loop RUNS_DIR SWEEP`, jobs on its stdin.

Owns what must hold whatever a trial does: its claim, its log, its outcome, and that nothing of this process's group
outlives the orchestrator. What a trial does is a ``jobs.Line``. Imports no torch before the first job.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.errors import EXIT_INTERRUPTED, Apart, Diverged, Preempted
from lora_sweep.messages import Job, Line, Voice
from lora_sweep.runs import files, results
from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.locks import claim

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def serve(lines: Iterator[str], runs: Path, sweep: str, make_line: Callable[[Path, str], Line], voice: Voice) -> int:
    """Run the packs of jobs that come in until the word ``end``, and return the exit code.

    0 after the last, and after running out of memory or a pack that was taken apart, since what comes next needs a
    fresh process; 75 after a stop, or where nothing can be written any more, which is no trial's fault and so no
    outcome of one.
    """
    line: Line | None = None
    for text in lines:
        message = json.loads(text)
        if "end" in message:
            break
        line = line or make_line(runs, sweep)
        jobs = [Job.from_json(each) for each in message["jobs"]]
        try:
            statuses = run_pack(jobs, runs, line, voice)
        except Exception as error:
            if not is_disk_trouble(error):
                raise
            voice.tell({"event": "disk", "reason": str(error)})
            return EXIT_INTERRUPTED
        if "preempted" in statuses:
            return EXIT_INTERRUPTED
        if not {"oom", "apart"}.isdisjoint(statuses):
            return 0
    return 0


@dataclass
class Member:
    """A job of a pack: what holds its claim, and how its stages ended, once they have."""

    job: Job
    folder: files.TrialFolder
    voice: Voice
    claimed: contextlib.ExitStack
    status: str = ""

    def leave(self, status: str, **more: str) -> None:
        """End it: from here on it is anybody's."""
        self.status = status
        self.claimed.close()
        crash_point("before end")
        self.voice.tell({"event": "end", "status": status, **more})
        crash_point("end told")


def run_job(job: Job, runs: Path, line: Line, voice: Voice) -> str:
    """Run a pack of one."""
    return run_pack([job], runs, line, voice)[0]


def run_pack(jobs: list[Job], runs: Path, line: Line, voice: Voice) -> list[str]:
    """Run the stages of jobs that share a base, each under its trial's claim.

    Returns:
        The status that each now has; ``trained`` where only its evaluation is left; ``busy`` where another process
        has the claim; ``apart`` where it is to run again, alone.
    """
    with contextlib.ExitStack() as claims:
        members = []
        for job in jobs:
            folder, own = files.trial_folder(runs, job.trial_id), voice.about(job)
            own = dataclasses.replace(own, tell=logged(own.tell, folder.log))
            members.append(Member(job, folder, own, claims.enter_context(contextlib.ExitStack())))
        for each in members:
            found = join(each, runs)
            if found:
                each.leave(found)
        present = [each for each in members if not each.status]
        for each in present:
            each.voice.tell({"event": "start"})
            crash_point("started")
        if present:
            line.together([each.job for each in present], [each.voice for each in present])
        for stage in jobs[0].stages:
            try:
                run_stage(stage, present, runs, line)
            except Apart as apart:
                take_apart(present, str(apart), line)
    return [each.status for each in members]


def join(member: Member, runs: Path) -> str | None:
    """Claim a member's trial, and make its folder ready. Returns its status where there is nothing to run."""
    job, folder = member.job, member.folder
    if not member.claimed.enter_context(claim(files.trial_lock(runs, job.trial_id))):
        return "busy"
    crash_point("claimed")
    files.remove_leftovers(folder.path)
    if results.is_trained(folder):
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # whoever trained it died before
    if results.is_settled(runs, job.trial_id, job.eval_id):  # by another sweep in between
        return str(results.read_outcome(runs, job.trial_id, job.eval_id).status)
    results.forget_failure(folder, job.eval_id)
    return None


def run_stage(stage: str, members: list[Member], runs: Path, line: Line) -> None:
    """Run a stage of each member that is still there. Who has nothing more to run leaves."""
    for each in members:
        if each.status:
            continue
        job, folder = each.job, each.folder
        path = folder.result if stage == "train" else folder.evaluation(job.eval_id).result
        status = (files.read_json(path) or {}).get("status")
        if status is None:
            with output_to(folder.log):
                status = attempt(stage, job, runs, line, each.voice, several=len(members) > 1)
        if status != "complete":
            each.leave(str(status))
        elif stage == job.stages[-1]:
            each.leave("complete" if stage == "evaluate" else "trained")


def take_apart(members: list[Member], reason: str, line: Line) -> None:
    """End every member that is still there, without an outcome of its own."""
    for each in members:
        if not each.status:
            with output_to(each.folder.log):
                print(time.strftime("%H:%M:%S"), f"to run again, alone: {reason}", file=sys.stderr, flush=True)
                line.failed(each.job, "preempted", reason)
            each.leave("apart", reason=reason)


def attempt(stage: str, job: Job, runs: Path, line: Line, voice: Voice, several: bool = False) -> str:
    """Run one stage; a fault becomes the trial's outcome. Returns its status.

    Raises:
        Apart: of ``several``, what they do together failed, or the memory, which this one might have had alone.
    """
    try:
        (line.train if stage == "train" else line.evaluate)(job, voice)
        crash_point("stage done")
        return "complete"
    except Exception as error:
        if is_disk_trouble(error):
            raise
        status, reason = outcome_of(error, line)
        if status not in ("preempted", "diverged"):
            traceback.print_exc()
        if several and isinstance(error, Apart):
            raise
        if several and status == "oom":
            raise Apart(reason) from error
    crash_point("before failure")
    results.write_failure(runs, job.ids, dataclasses.asdict(job.config), job.facts, status, reason)
    voice.say(f"{job.label}: {status}: {reason.splitlines()[0][:160]}")
    line.failed(job, status, reason)
    return status


def outcome_of(error: Exception, line: Line) -> tuple[str, str]:
    """A fault as a status and a reason. What a pack of one did together, it did alone: there the cause counts."""
    if isinstance(error, Apart) and isinstance(error.__cause__, Exception):
        return outcome_of(error.__cause__, line)
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, Preempted):
        return "preempted", reason
    if isinstance(error, Diverged):
        return "diverged", reason
    return "oom" if line.is_out_of_memory(error) else "failed", f"{type(error).__name__}: {reason}"[:2000]


def is_disk_trouble(error: BaseException) -> bool:
    """Whether the disk is full, gone or read-only. Libraries wrap the system's word into errors of their own."""
    if isinstance(error, OSError) and error.errno in files.DISK_ERRORS:
        return True
    signs = ("No space left on device", "Read-only file system", "Disk quota exceeded", "Input/output error")
    return any(sign in str(error) for sign in signs)


# --- the process -------------------------------------------------------------------------------------------------


def logged(tell: Callable[[dict[str, Any]], None], log: Path) -> Callable[[dict[str, Any]], None]:
    """``tell``, with what is said to people in ``log``, whichever member's the process writes to at the moment."""

    def tell_there(event: dict[str, Any]) -> None:
        with output_to(log) if event["event"] == "say" else contextlib.nullcontext():
            tell(event)

    return tell_there


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append what this process prints, compiled code included, to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [os.dup(1), os.dup(2)]
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for target in (1, 2):
            os.dup2(handle, target)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, old in zip((1, 2), before, strict=True):
            os.dup2(old, target)
            os.close(old)
        os.close(handle)


def events_to(handle: int) -> Callable[[dict[str, Any]], None]:
    """A function that writes events as lines to ``handle``; what is said to people goes to the log too."""

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "say":
            print(time.strftime("%H:%M:%S"), event["text"], file=sys.stderr, flush=True)
        data = json.dumps(event).encode() + b"\n"
        try:
            while data:
                data = data[os.write(handle, data) :]
        except BrokenPipeError:  # nobody is there to run for
            os._exit(EXIT_INTERRUPTED)

    return tell


def die_with_parent() -> None:
    """On Linux: end this process when the orchestrator ends, however it ends (PR_SET_PDEATHSIG, man 2 prctl)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def start_guard() -> int:
    """Fork a child that kills this process's group once the orchestrator or this process is gone, and return its pid.

    A death signal reaches a child alone; what that child had started itself would go on. The guard watches the pipe
    of jobs, which ends with its writer, and its own parent.
    """
    worker = os.getpid()
    if os.getpgid(0) != worker:
        os.setpgid(0, 0)
    guard = os.fork()
    if guard:
        return guard
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        writer = select.poll()
        writer.register(0, 0)  # no event but the end
        while os.getppid() == worker and not writer.poll(300):
            pass
    finally:
        os.killpg(0, signal.SIGKILL)
    raise AssertionError


def main(make_line: Callable[[Path, str], Line] | None = None) -> None:
    """Serve the orchestrator. A test gives its own ``make_line``."""
    runs, sweep = Path(sys.argv[1]), sys.argv[2]
    guard = start_guard()
    die_with_parent()
    stops: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: stops.append(number))
    tell = events_to(os.dup(1))
    os.dup2(2, 1)  # what is printed belongs in the log, which is stderr
    try:
        code = serve(
            iter(sys.stdin.readline, ""), runs, sweep, make_line or straight_line, Voice(tell, lambda: bool(stops))
        )
    finally:
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)
    sys.exit(code)


def straight_line(runs: Path, sweep: str) -> Line:
    """The real thing: from here on this process holds torch.

    What is imported stays: looked through by the garbage collector while it is imported and when the process ends, it
    took 6.0 s of a core to start and end, and takes 3.4 s without (2 cores of an AMD EPYC).
    """
    gc.disable()
    from lora_sweep.worker.pack import StraightLine

    gc.freeze()
    gc.enable()
    return StraightLine(runs, sweep)


if __name__ == "__main__":
    main()
