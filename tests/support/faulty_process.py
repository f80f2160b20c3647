"""The processes of a scripted sweep with a fault put in, a program: ``faulty_process.py sweep`` or ``worker``.

``faulty_process.py sweep RUNS NAME COUNT [KEY=VALUE of launch ...]`` starts ``faulty_process.py worker RUNS SWEEP``.
A worker is ``scripted_worker.py`` with more to script (see :class:`FaultyRunner`). FAULT, a JSON object in the
environment, is a disk that fails: ``{"in": "sweep" or "worker", "call": one of CALLS, "at": k, "errno": n,
"flag": file}`` has that call fail at its k-th time on a file below the runs folder, once. ``"lasting"``: from then on,
in every process, whatever would need a new block, as on a full disk. ``flag`` is made on the way.
"""

import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import scripted_worker

from lora_sweep.errors import EXIT_REFUSED, Refused
from lora_sweep.messages import Job, Reporter
from lora_sweep.runs import files, provenance
from lora_sweep.worker import loop

WORKER = (sys.executable, __file__, "worker")
# "append" is a line's write, "short" one of which the system takes a half; "write" a whole file's.
CALLS = ("open", "mkstemp", "write", "append", "short", "pwrite", "fsync", "replace", "mkdir")
NEED_BLOCKS = ("mkstemp", "write", "append", "pwrite", "mkdir")


class FaultyRunner(scripted_worker.ScriptedRunner):
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


def run_sweep(runs: Path, name: str, count: int, settings: list[str]) -> None:
    """Run a scripted sweep to its end, and exit as the command does. A worker never imports the orchestrator."""
    from support.scripted import plan_of

    from sweep.engines.local.engine import LocalEngine
    from sweep.launch import launch

    values = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in settings)}
    try:
        outcomes = launch(plan_of(runs, name, count, **values), [name, *settings], LocalEngine(WORKER))
    except Refused as refused:
        print(refused)
        sys.exit(EXIT_REFUSED)
    sys.exit(any(outcome.status != "complete" for outcome in outcomes.values()))


def main() -> None:
    fault = json.loads(os.environ.get("FAULT", "{}"))
    if fault:
        Disk(fault, sys.argv[2], ours=sys.argv[1] == fault["in"]).put_in()
    provenance.code_fingerprint = lambda: "scripted"  # a quarter of such a short command's time
    if sys.argv[1] == "worker":
        del sys.argv[1]
        loop.main(FaultyRunner)
    else:
        _, _, runs, name, count, *settings = sys.argv
        run_sweep(Path(runs), name, int(count), settings)


if __name__ == "__main__":
    main()
