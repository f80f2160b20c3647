"""One worker process, as the orchestrator sees it: it is given jobs, sends events, and can be ended with its group."""

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
    # glibc gives buffers of a step back to the system, and asks for them again at the next: 15-25 % of a CPU step.
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
        number: from 0; people see it from 1.
        oom_kills_before: how many processes the system had killed for memory when this one started.
        loaded_base: the base of its last pack.
        running: the trials of its pack that have not ended.
        pack_size: how many trials it was given, at ``given_at``.
        heard_at: when its last event came.
        stage: the stage of its pack, as far as its events tell.
        started: the keys of the trials of its pack that it began.
        ending: it takes no other pack.
        kill_at: set once it was asked to stop: when it is killed if it has not stopped.
        timeout: the time limit for which it was asked to stop.
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
    ending: bool = False
    kill_at: float | None = None
    timeout: str | None = None
    buffer: bytes = field(default=b"", repr=False)

    @property
    def output(self) -> int:
        """The file descriptor that its events come from."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give_pack(self, pack: Sequence[PendingTrial], jobs: Sequence[Job]) -> None:
        """Have it run a pack of trials. It must be idle."""
        self.running, self.pack_size = {pending.trial.key: pending for pending in pack}, len(pack)
        self.started = set()
        self.loaded_base, self.stage = pack[0].base, pack[0].stages[0]
        self.given_at = self.heard_at = time.monotonic()
        self.send_message({"jobs": [dataclasses.asdict(job) for job in jobs]})

    def end_when_idle(self) -> None:
        """Have it exit after its present pack."""
        if not self.ending:
            self.ending = True
            self.send_message({"end": True})

    def send_message(self, message: Mapping[str, object]) -> None:
        """Send one line of JSON, see ``lora_sweep.messages``."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the orchestrator learns that from its exit code
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
        """Ask it to save and exit. The caller kills it at ``kill_at`` if it has not."""
        if self.kill_at is None:
            self.kill_at = kill_at
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def kill_group(self) -> None:
        """Kill the process, and every process that it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def has_exited(self) -> bool:
        """Whether the process has ended; then nothing of its group is left."""
        if self.process.returncode is None:
            # waitid looks without reaping: until the process is reaped, no other group can get its group's number.
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.kill_group()
            self.process.wait()
        return True

    def close_pipes(self) -> None:
        """Close its pipes, after the last event was read."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # a job in the pipe that it never read
                assert pipe is not None
                pipe.close()

    def describe_exit(self) -> WorkerExit:
        """How the process ended. It counts as out of memory if the system killed a process for memory meanwhile."""
        code = self.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerExit(how, code == -signal.SIGKILL and count_oom_kills() > self.oom_kills_before)


def start_worker(
    number: int, slot: Slot, environment: dict[str, str], runs: Path, sweep: str, command: Sequence[str]
) -> WorkerProcess:
    """Start a worker process in a process group of its own; its stderr goes to the sweep's worker-N.log.

    Args:
        environment: the variables that bind it to its slot.
        command: the worker's command, without its arguments.
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
