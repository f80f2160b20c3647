"""The process of a worker: nobody is left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripted import WORKER
from support.worker_jobs import as_jobs, plan_trial

from lora_sweep.runs import files


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def family(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from family(int(child))


@pytest.fixture
def spawning(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """An orchestrator's stand-in whose worker runs a trial that has started a process: (the stand-in, its family)."""
    code = """
import subprocess, sys, time
runs, command, job = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
pipe = subprocess.PIPE
worker = subprocess.Popen([*command, runs, "a"], stdin=pipe, stdout=pipe, start_new_session=True)
worker.stdin.write(job.encode() + b"\\n")
worker.stdin.flush()
print(worker.pid, flush=True)
time.sleep(60)
"""
    one = json.dumps(as_jobs(tmp_path))
    arguments = [sys.executable, "-c", code, str(tmp_path), repr(WORKER), one]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "SCRIPT": '{"*": "spawn"}'}
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        told = files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).path / "grandchild"
        end = time.monotonic() + 20
        while not (told.exists() and told.read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
        pids = list(family(child))
        assert int(told.read_text()) in pids
        assert len(pids) == 3, "the worker, its guard and the trial's process"
        yield process, pids
        process.kill()


def test_nobody_outlives_a_killed_orchestrator(spawning: Any) -> None:
    process, pids = spawning
    process.kill()
    assert gone(pids)


def test_nobody_outlives_a_killed_worker(spawning: Any) -> None:
    _, pids = spawning
    os.kill(pids[0], 9)
    assert gone(pids[1:])


def test_nobody_outlives_both(spawning: Any) -> None:
    process, pids = spawning
    process.kill()
    os.kill(pids[0], 9)
    assert gone(pids)


def test_a_worker_that_ends_leaves_no_guard(tmp_path: Path) -> None:
    with subprocess.Popen([*WORKER, str(tmp_path), "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(as_jobs(tmp_path)).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "end":
                break
        pids = list(family(process.pid))
        assert len(pids) == 2
        process.stdin.write(b'{"end": true}\n')
        process.stdin.flush()
        assert process.wait(20) == 0
        assert gone(pids)


def test_starting_a_worker_loads_no_torch() -> None:
    script = "import sys, lora_sweep.worker.loop; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
