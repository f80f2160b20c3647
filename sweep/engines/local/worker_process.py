"""A worker process as the orchestrator sees it: it gets jobs, sends events, and can be killed with its children."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_sweep.messages import Event, Job
from lora_sweep.runs import files
from sweep.engines.pending import PendingTrial
from sweep.engines.policy import WorkerExit
from sweep.resources.machine import Slot, count_oom_kills
from sweep.trials import Key

WORKER_COMMAND = (sys.executable, "-m", "lora_sweep.worker.loop")
ENVIRONMENT = {
    # Without these glibc returns the buffers of a step to the system and asks for them again: 15-25 % of a CPU step.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
READ_BYTES = 1 << 16


@dataclass
class WorkerProcess:
    """A process that runs packs of trials, one after another. Times are seconds of time.monotonic().

    Attributes:
        number: counts from 0; messages for people count from 1.
        oom_kills_before: how many processes the system had killed for lack of memory when this one started.
        loaded_base: the name of the base of its last pack.
        running: the trials of its pack that have not ended.
        pack_size: how many trials its pack had when it got it, at ``given_at``.
        heard_at: when its last event came.
        stage: the stage that it runs, as its events tell.
        started: the keys of the trials of its pack that it began.
        is_ending: whether it exits after its present pack.
        kill_at: the time at which it is killed if it is still running; None until it is asked to stop.
        timeout: the time limit that its pack reached, in words; None if it reached none.
    """

    number: int
    slot: Slot
    process: subprocess.Popen[bytes]
    oom_kills_before: int
    loaded_base: str | None = None
    running: dict[Key, PendingTrial] = field(default_factory=dict)
    pack_size: int = 0
    given_at: float = 0.0
    heard_at: float = 0.0
    stage: str = "train"
    started: set[Key] = field(default_factory=set)
    is_ending: bool = False
    kill_at: float | None = None
    timeout: str | None = None
    buffer: bytes = field(default=b"", repr=False)

    @property
    def output(self) -> int:
        """The file descriptor to read its events from."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give_pack(self, pack: Sequence[PendingTrial], jobs: Sequence[Job]) -> None:
        """Give it a pack of trials to run. It must be idle."""
        self.running, self.pack_size = {pending.trial.key: pending for pending in pack}, len(pack)
        self.started = set()
        self.loaded_base, self.stage = pack[0].base, pack[0].stages[0]
        self.given_at = self.heard_at = time.monotonic()
        self.send_message({"jobs": [dataclasses.asdict(job) for job in jobs]})

    def end_when_idle(self) -> None:
        """Tell it to exit after its present pack."""
        if not self.is_ending:
            self.is_ending = True
            self.send_message({"end": True})

    def send_message(self, message: Mapping[str, object]) -> None:
        """Send one line of JSON. ``lora_sweep.messages`` describes the messages."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; its exit code tells why
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def read_events(self) -> list[Event]:
        """The events that it sent since the last call. Does not wait."""
        while True:
            try:
                data = os.read(self.output, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                break
            self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        events: list[Event] = []
        for line in lines:
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        if events:
            self.heard_at = time.monotonic()
        return events

    def request_stop(self, kill_at: float) -> None:
        """Ask it to save and exit. The caller kills it if it is still running at ``kill_at``."""
        if self.kill_at is None:
            self.kill_at = kill_at
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def kill_group(self) -> None:
        """Kill the process and every process that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def has_exited(self) -> bool:
        """Whether the process has ended. If it has, no process of its group is left."""
        if self.process.returncode is None:
            # waitid does not reap the process: no other group can get the number of its group before the kill.
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.kill_group()
            self.process.wait()
        return True

    def close_pipes(self) -> None:
        """Close its pipes. The caller has read the last event."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # the pipe still holds a job that it never read
                assert pipe is not None
                pipe.close()

    def describe_exit(self) -> WorkerExit:
        """How the process ended. SIGKILL counts as out of memory if the system killed any process for that since."""
        code = self.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerExit(how, code == -signal.SIGKILL and count_oom_kills() > self.oom_kills_before)


def start_worker(
    number: int, slot: Slot, environment: dict[str, str], runs: Path, sweep: str, command: Sequence[str]
) -> WorkerProcess:
    """Start a worker process in a new process group. Its stderr goes to the worker-N.log of the sweep.

    Args:
        number: of the worker, from 0.
        environment: the variables that bind the process to its slot.
        command: the command of the worker, without its arguments.
    """
    log = files.report_folder(runs, sweep) / f"worker-{number + 1}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*command, str(runs), sweep],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT, **environment},
            start_new_session=True,
        )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return WorkerProcess(number, slot, process, count_oom_kills(), heard_at=time.monotonic())
