"""The worker as a process of the operating system: events, logs, signals, and how it ends with its parent."""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_sweep.errors import EXIT_INTERRUPTED
from lora_sweep.messages import Event

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
PARENT_CHECK_MILLISECONDS = 300
PR_SET_PDEATHSIG = 1  # man 2 prctl


@contextlib.contextmanager
def append_output(log: Path) -> Iterator[None]:
    """Append everything that this process prints to ``log``, including the output of compiled code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved_handles = [os.dup(1), os.dup(2)]
    log_handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for standard_handle in (1, 2):
            os.dup2(log_handle, standard_handle)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for standard_handle, saved_handle in zip((1, 2), saved_handles, strict=True):
            os.dup2(saved_handle, standard_handle)
            os.close(saved_handle)
        os.close(log_handle)


def write_events_to(handle: int) -> Callable[[Event], None]:
    """Make a function that writes an event as a JSON line to ``handle``. It also prints the texts for people."""

    def write_event(event: Event) -> None:
        if event["event"] == "say":
            print(time.strftime("%H:%M:%S"), event["text"], file=sys.stderr, flush=True)
        data = json.dumps(event).encode() + b"\n"
        try:
            while data:
                data = data[os.write(handle, data) :]
        except BrokenPipeError:  # the orchestrator is gone: nothing reads the events any more
            os._exit(EXIT_INTERRUPTED)

    return write_event


def watch_stop_signals() -> Callable[[], bool]:
    """Catch the signals that ask for a stop. Returns a function that tells whether one came."""
    received: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    return lambda: bool(received)


def die_with_parent() -> None:
    """On Linux, ask the kernel to kill this process when the orchestrator ends, even if it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def guard_process_group() -> Iterator[None]:
    """Start a child process, the guard, that kills the process group when the orchestrator or this process is gone.

    The kernel's signal of :func:`die_with_parent` reaches this process only, not the processes that it started. The
    guard notices the end of both: the pipe of jobs ends with the orchestrator, and this process is its parent.
    """
    guard = start_guard()
    try:
        yield
    finally:
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)


def start_guard() -> int:
    """Fork the guard of :func:`guard_process_group`. Returns its process id; the guard itself never returns."""
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
        jobs_pipe = select.poll()
        jobs_pipe.register(0, 0)  # no event mask: only the end of the pipe is reported
        while os.getppid() == worker and not jobs_pipe.poll(PARENT_CHECK_MILLISECONDS):
            pass
    finally:
        os.killpg(0, signal.SIGKILL)
    raise AssertionError("the guard was in its own process group and killed it")
