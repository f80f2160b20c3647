"""Scripted sweeps with a fault put in, in processes of their own: a disk that fails, and trials that misbehave more.

``start`` starts one. As a program it is ``scripted.py`` with more to script (see :class:`FaultyRunner`), and with the
FAULT of the environment, a JSON object: ``{"in": "sweep" or "worker", "call": one of CALLS, "at": k, "errno": n,
"flag": file}`` has that call fail at its k-th time on a file below the runs folder, once. ``"lasting"``: from then on,
in every process, whatever would need a new block, as on a full disk. ``flag`` is made on the way.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import scripted

from lora_sweep.errors import EXIT_REFUSED, Refused
from lora_sweep.messages import Job, Reporter
from lora_sweep.runs import files, provenance

HERE = Path(__file__)
WORKER = (sys.executable, str(HERE), "worker")
# "append" is a line's write, "short" one of which the system takes a half; "write" a whole file's.
CALLS = ("open", "mkstemp", "write", "append", "short", "pwrite", "fsync", "replace", "mkdir")
NEED_BLOCKS = ("mkstemp", "write", "append", "pwrite", "mkdir")


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code, negative after a signal, and all that it printed."""

    code: int
    text: str


def start(
    runs: Path,
    name: str,
    count: int,
    script: dict[str, Any] | None = None,
    *,
    crash: str = "",
    fault: dict[str, Any] | None = None,
    **settings: Any,
) -> subprocess.Popen[str]:
    """A sweep of ``count`` scripted trials in a process of its own, in the folder that holds ``runs``."""
    runs.parent.mkdir(parents=True, exist_ok=True)
    variables = {
        "SWEEP_OF": str(runs),
        "SCRIPT": json.dumps(script or {}),
        "LORA_SWEEP_DEVICE": "cpu",
        "LORA_SWEEP_CRASH": crash,
    }
    if fault:
        variables["FAULT"] = json.dumps(fault)
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return subprocess.Popen(
        [sys.executable, str(HERE), "sweep", str(runs), name, str(count), *given],
        cwd=runs.parent,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], within: float = 60) -> Ended:
    """Wait for a process; one that does not end is killed, and the test fails."""
    try:
        text, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        raise AssertionError(f"it did not end within {within} s; it had said:\n{text}") from None
    return Ended(process.returncode, text)


def run(*arguments: Any, **more: Any) -> Ended:
    """``start``, and wait for its end."""
    return ended(start(*arguments, **more))


def poll(what: Callable[[], Any], within: float = 30) -> Any:
    """What ``what`` returns once that is true; the test fails when it is not in time."""
    deadline = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < deadline, f"it did not come about within {within} s"
        time.sleep(0.01)
    return found


# --- what the started process does -------------------------------------------------------------------------------


class FaultyRunner(scripted.ScriptedRunner):
    """More that a trial can be scripted to do, and a trace of each training: its process id, and an x more.

    ``die when done``: its worker dies twice before it begins, and once more after the last result is written. ``late``:
    it goes on after a request to stop, and completes; ``late train``: its training does; ``late fail``: it fails then.
    ``kernel FILE``: a byte more in FILE, which stands for the kernel's count of the processes that it killed for
    memory, and SIGKILL.
    """

    def train_one(self, job: Job, reporter: Reporter) -> None:
        action, folder = self.find_action(job), files.trial_folder(self.runs, job.trial_id).path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pid").write_text(str(os.getpid()))
        with (folder / "trainings").open("a") as file:
            file.write("x")
        if action == "die when done" and job.failed_attempts < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if action.startswith("late"):
            reporter.report_phase("training")
            while not reporter.is_stop_requested():
                time.sleep(0.01)
            reporter = Reporter(reporter.send_event)
            if action == "late fail":
                raise ValueError("as the script says")
        if action.startswith("kernel "):
            with Path(action.removeprefix("kernel ")).open("ab") as file:
                file.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
        super().train_one(job, reporter)

    def evaluate_one(self, job: Job, reporter: Reporter) -> None:
        action = self.find_action(job)
        super().evaluate_one(job, Reporter(reporter.send_event) if action == "late" else reporter)
        if action == "die when done":
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Disk:
    """A disk that fails as the FAULT says, for files below ``root``; ``ours``: whether the fault is this process's."""

    fault: dict[str, Any]
    root: str
    ours: bool
    count: int = 0

    def fails(self, call: str, path: Any) -> bool:
        flag = Path(self.fault["flag"])
        if not str(path).startswith(self.root):
            return False
        if flag.exists():
            return bool(self.fault.get("lasting")) and call in NEED_BLOCKS
        if not self.ours or call != self.fault["call"]:
            return False
        self.count += 1
        if self.count == self.fault["at"]:
            flag.write_text(call)
        return self.count == self.fault["at"]

    def error(self) -> OSError:
        return OSError(self.fault["errno"], os.strerror(self.fault["errno"]))

    def guarded(self, call: str, real: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*arguments: Any, **named: Any) -> Any:
            if self.fails(call, path_of(*arguments, **named)):
                raise self.error()
            return real(*arguments, **named)

        return patched

    def put_in(self) -> None:
        """Have the calls of ``os`` and ``tempfile`` fail from now on."""
        disk, real_write, real_fdopen = self, os.write, os.fdopen

        class TornFile(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.fails("write", name_of(self.fileno())):
                    super().write(data[: len(data) // 2])
                    raise disk.error()
                return super().write(data) or 0

        def write(handle: int, data: bytes) -> int:
            half = len(data) // 2 if self.fails("short", name_of(handle)) else len(data)
            if self.fails("append", name_of(handle)):
                raise self.error()
            return real_write(handle, data[:half])

        def fdopen(handle: int, mode: str = "r", *more: Any, **named: Any) -> Any:
            return TornFile(handle, mode) if mode == "wb" else real_fdopen(handle, mode, *more, **named)

        os.write, os.fdopen = write, fdopen
        os.open = self.guarded("open", os.open, lambda path, *_, **__: path)
        os.pwrite = self.guarded("pwrite", os.pwrite, lambda handle, *_: name_of(handle))
        os.fsync = self.guarded("fsync", os.fsync, name_of)
        os.replace = self.guarded("replace", os.replace, lambda source, target: target)
        os.mkdir = self.guarded("mkdir", os.mkdir, lambda path, *_, **__: path)
        tempfile.mkstemp = self.guarded("mkstemp", tempfile.mkstemp, lambda **named: named.get("dir"))


def name_of(handle: int) -> str:
    """The path of an open file; nothing for what has none."""
    try:
        return str(Path(f"/proc/self/fd/{handle}").readlink())
    except OSError:
        return ""


def main() -> None:
    fault = json.loads(os.environ.get("FAULT", "{}"))
    if fault:
        Disk(fault, sys.argv[2], ours=sys.argv[1] == fault["in"]).put_in()
    provenance.code_fingerprint = lambda: "scripted"  # a quarter of such a short command's time
    scripted.WORKER = WORKER
    scripted.ScriptedRunner = FaultyRunner
    try:
        scripted.main()
    except Refused as refused:
        print(refused)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
