"""A worker process as the orchestrator holds it: jobs go in, events come out, and its whole group can be ended."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.runs import files
from sweep.engines.queue import Waiting
from sweep.resources.machine import Slot, count_oom_kills
from sweep.trials import Key, PlannedTrial

COMMAND = (sys.executable, "-m", "lora_sweep.worker.loop")
ENVIRONMENT = {
    # glibc gives buffers of a step back to the system, and asks for them again at the next: 15-25 % of a CPU step.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Worker:
    """One process.

    Attributes:
        loaded: the base of its last pack.
        items: the trials of its pack that have not ended, by their keys. It was given ``given`` of them at ``since``
            (time.monotonic); its last sign of life was at ``heard``.
        stage: ``train`` or ``evaluate``, as far as its events tell.
        started: the keys of those that it began.
        stop_by: when it was asked to stop: the time at which it is killed.
        timeout: why it was asked to stop, where a limit was reached.
    """

    number: int
    place: Slot
    process: subprocess.Popen[bytes]
    ooms_before: int
    loaded: str | None = None
    items: dict[Key, Waiting] = field(default_factory=dict)
    given: int = 0
    since: float = 0.0
    heard: float = 0.0
    stage: str = "train"
    started: set[Key] = field(default_factory=set)
    ending: bool = False
    stop_by: float | None = None
    timeout: str | None = None
    buffer: bytes = field(default=b"", repr=False)

    @classmethod
    def start(
        cls, number: int, place: Slot, environment: dict[str, str], runs: Path, sweep: str, command: Sequence[str]
    ) -> "Worker":
        """Start the process, in a group of its own; its errors go to the sweep's worker-N.log."""
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
        return cls(number, place, process, count_oom_kills(), heard=time.monotonic())

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, pack: Sequence[Waiting], jobs: list[dict[str, Any]]) -> None:
        """Have it run a pack of trials. It must be idle."""
        self.items, self.given, self.started = {item.trial.key: item for item in pack}, len(pack), set()
        self.loaded, self.stage = pack[0].base, pack[0].stages[0]
        self.since = self.heard = time.monotonic()
        self.send({"jobs": jobs})

    def end(self) -> None:
        """Have it exit after what it is doing."""
        if not self.ending:
            self.ending = True
            self.send({"end": True})

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: its exit says so
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def events(self) -> list[dict[str, Any]]:
        """What it said since the last call."""
        while True:
            try:
                data = os.read(self.output, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        if found:
            self.heard = time.monotonic()
        return found

    def ask_to_stop(self, by: float) -> None:
        """Ask it to save and exit; whoever calls kills it after ``by`` (time.monotonic)."""
        if self.stop_by is None:
            self.stop_by = by
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill its group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def exit_code(self) -> int | None:
        """Its exit code once it has ended, and then nothing of its group is left; None while it runs."""
        if self.process.returncode is None:
            # Looked at without reaping: as long as the process is not reaped, its group's number is nobody else's.
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.kill()
            self.process.wait()
        return self.process.returncode

    def close(self) -> None:
        """Let go of its pipes, after the last event was read."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # a job that it never read
                assert pipe is not None
                pipe.close()

    def ran_out_of_memory(self) -> bool:
        """Whether the system killed a process for memory while this one lived, and it died of SIGKILL."""
        return self.process.returncode == -signal.SIGKILL and count_oom_kills() > self.ooms_before


def as_job(trial: PlannedTrial, **more: Any) -> dict[str, Any]:
    """A trial as ``lora_sweep.messages.Job`` reads it."""
    facts = trial.facts
    return {
        "trial_id": trial.trial_id,
        "eval_id": trial.eval_id,
        "kind": trial.kind,
        "label": trial.label,
        "config": dataclasses.asdict(trial.config),
        "target_modules": trial.target_modules,
        "facts": {
            "identity": trial.identity,
            "fingerprints": {"model": facts.model.fingerprint, "data": facts.data.fingerprint},
            "targets": trial.config.lora.targets if trial.kind == "trial" else None,
            "target_modules": trial.target_modules,
            "trainable_params": trial.trainable_params,
            "total_params": facts.model.total_params,
            "data": dataclasses.asdict(facts.data),
        },
        **more,
    }
