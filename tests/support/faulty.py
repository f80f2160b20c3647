"""Scripted sweeps in which processes are killed, a disk fails or trials misbehave: see ``faulty_process.py``."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from support.faulty_process import WORKER as WORKER
from support.faulty_process import run_sweep

from lora_sweep.runs import provenance

PROGRAM = str(Path(__file__).with_name("faulty_process.py"))


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
    """A sweep of ``count`` scripted trials in a process of its own, in the folder that holds ``runs``.

    Args:
        crash: kills a process at a crash point: ``NAME:K:FLAG``, its K-th time, and makes the file FLAG.
        fault: a disk that fails; see ``faulty_process.py``.
        settings: of ``launch``.
    """
    runs.parent.mkdir(parents=True, exist_ok=True)
    variables = make_environment(runs, script, crash)
    if fault:
        variables["FAULT"] = json.dumps(fault)
    return subprocess.Popen(
        [sys.executable, PROGRAM, "sweep", str(runs), name, str(count), *make_arguments(settings)],
        cwd=runs.parent,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_environment(runs: Path, script: dict[str, Any] | None, crash: str = "") -> dict[str, str]:
    return {
        "SWEEP_OF": str(runs),  # by which invariants.processes_of finds the processes of a sweep
        "SCRIPT": json.dumps(script or {}),
        "LORA_SWEEP_DEVICE": "cpu",
        "LORA_SWEEP_CRASH": crash,
    }


def make_arguments(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def ended(process: subprocess.Popen[str], within: float = 60) -> Ended:
    """Wait for a process; one that does not end is killed, and the test fails."""
    try:
        text, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        raise AssertionError(f"it did not end within {within} s; it had said:\n{text}") from None
    return Ended(process.returncode, text)


def run(
    runs: Path,
    name: str,
    count: int,
    script: dict[str, Any] | None = None,
    *,
    crash: str = "",
    fault: dict[str, Any] | None = None,
    **settings: Any,
) -> Ended:
    """``start``, and wait for the end.

    A sweep without a crash and a fault runs in this process, which saves a start of Python: only its workers are
    processes.
    """
    if crash or fault:
        return ended(start(runs, name, count, script, crash=crash, fault=fault, **settings))
    runs.parent.mkdir(parents=True, exist_ok=True)
    printed, code = io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, make_environment(runs, script)))
        stack.enter_context(mock.patch.object(provenance, "code_fingerprint", return_value="scripted"))
        stack.enter_context(contextlib.chdir(runs.parent))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(limit_seconds(60))
        try:
            run_sweep(runs, name, count, make_arguments(settings))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Ended(code, printed.getvalue())


@contextlib.contextmanager
def limit_seconds(seconds: int) -> Iterator[None]:
    """Let the test fail when the block takes longer."""

    def fail(*_: object) -> None:
        raise AssertionError(f"it did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def poll(what: Callable[[], Any], within: float = 30) -> Any:
    """What ``what`` returns once that is true; the test fails when it is not in time."""
    deadline = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < deadline, f"it did not come about within {within} s"
        time.sleep(0.01)
    return found
