"""What a worker holds to whatever its trials do: claims, outcomes, logs, and nobody left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import WORKER, Script, plan_of

from lora_sweep import results, worker
from lora_sweep.claims import claim
from lora_sweep.errors import Diverged, Preempted
from lora_sweep.jobs import Job, Voice
from sweep.trials import Planned
from sweep.workers import as_job


def trial(runs: Path, number: int = 0) -> Planned:
    return plan_of(runs, "a", number + 1).trials[number]


def job(runs: Path, number: int = 0, **more: Any) -> Job:
    return Job.from_json(json.loads(json.dumps(as_job(trial(runs, number), **more))))


class Line(Script):
    """A script whose stages can be made to raise."""

    def __init__(self, runs: Path, train: BaseException | None = None, evaluate: BaseException | None = None) -> None:
        super().__init__(runs, "a")
        self.errors = {"train": train, "evaluate": evaluate}
        self.told: list[tuple[str, str]] = []

    def train(self, job: Job, voice: Voice) -> None:
        if self.errors["train"]:
            raise self.errors["train"]
        super().train(job, voice)

    def evaluate(self, job: Job, voice: Voice) -> None:
        if self.errors["evaluate"]:
            raise self.errors["evaluate"]
        super().evaluate(job, voice)

    def failed(self, job: Job, status: str, reason: str) -> None:
        self.told.append((status, reason))


def run(runs: Path, line: Line, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return worker.run_job(job(runs, **more), runs, line, Voice(events.append)), events


FAULTS = [
    (ValueError("broken"), "failed", "ValueError: broken"),
    (ValueError(), "failed", "ValueError: ValueError"),
    (Diverged("loss is nan at step 2"), "diverged", "loss is nan at step 2"),
    (MemoryError(), "oom", "MemoryError: MemoryError"),
    (Preempted("saved at step 2 of 4"), "preempted", "saved at step 2 of 4"),
]


@pytest.mark.parametrize("stage", ["train", "evaluate"])
@pytest.mark.parametrize(("error", "status", "reason"), FAULTS)
def test_a_fault_is_an_outcome(error: Exception, status: str, reason: str, stage: str, tmp_path: Path) -> None:
    line = Line(tmp_path, **{stage: error})
    got, events = run(tmp_path, line)
    assert got == status
    assert line.told == [(status, reason)]
    found = results.load_result(tmp_path, trial(tmp_path).trial_id, "e0")
    assert (found.status, found.reason) == (status, reason)
    assert f"t0: {status}: {reason}" in [event.get("text") for event in events]
    trained = results.trial_folder(tmp_path, trial(tmp_path).trial_id).adapter.exists()
    assert trained == (stage == "evaluate"), "a fault of the evaluation keeps the adapter"


def test_what_was_a_fault_is_forgotten_by_the_next_attempt(tmp_path: Path) -> None:
    run(tmp_path, Line(tmp_path, evaluate=ValueError("broken")))
    before = results.trial_folder(tmp_path, trial(tmp_path).trial_id).result.stat().st_mtime_ns
    assert run(tmp_path, Line(tmp_path))[0] == "complete"
    assert results.trial_folder(tmp_path, trial(tmp_path).trial_id).result.stat().st_mtime_ns == before


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    assert run(tmp_path, Line(tmp_path))[0] == "complete"
    never = Line(tmp_path, train=AssertionError("trained again"), evaluate=AssertionError("evaluated again"))
    assert run(tmp_path, never)[0] == "complete"
    assert run(tmp_path, never, stages=["evaluate"])[0] == "complete"


def test_what_diverged_stays_so(tmp_path: Path) -> None:
    run(tmp_path, Line(tmp_path, train=Diverged("loss is nan")))
    assert run(tmp_path, Line(tmp_path))[0] == "diverged"


def test_a_trial_that_is_claimed_is_left_alone(tmp_path: Path) -> None:
    with claim(results.trial_lock(tmp_path, trial(tmp_path).trial_id)):
        assert run(tmp_path, Line(tmp_path)) == ("busy", [])
    assert not (tmp_path / "trials").exists()


def test_a_stage_at_a_time(tmp_path: Path) -> None:
    assert run(tmp_path, Line(tmp_path), stages=["train"])[0] == "trained"
    assert run(tmp_path, Line(tmp_path), stages=["evaluate"])[0] == "complete"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = results.trial_folder(tmp_path, trial(tmp_path).trial_id).path
    (folder / "evals" / "e0").mkdir(parents=True)
    for name in (".result.json.abc.tmp", "evals/e0/.scores.json.abc.tmp"):
        (folder / name).write_text("{")
    run(tmp_path, Line(tmp_path))
    assert not list(folder.rglob("*.tmp"))


def test_what_a_trial_prints_is_in_its_log_even_from_compiled_code(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[2]); import test_worker as t; from pathlib import Path; "
    code += "t.run_loud(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    log = results.trial_folder(tmp_path, trial(tmp_path).trial_id).log.read_text()
    for words in ("from python\n", "from python's stderr\n", "from below\n"):
        assert words in log
        assert words not in done.stdout + done.stderr
    assert "after" in done.stdout


def run_loud(runs: Path) -> None:
    """In a process of its own, for what it prints is caught at the level of the system."""

    class Loud(Line):
        def train(self, job: Job, voice: Voice) -> None:
            print("from python")
            print("from python's stderr", file=sys.stderr)
            os.write(1, b"from below\n")
            super().train(job, voice)

    run(runs, Loud(runs))
    print("after")


DISK = [
    OSError(28, "No space left on device"),
    OSError(30, "Read-only file system"),
    OSError(5, "Input/output error"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", DISK)
def test_a_full_disk_is_no_trials_outcome(error: Exception, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_job(trial(tmp_path))), "not reached"])
    code = worker.serve(lines, tmp_path, "a", lambda runs, sweep: Line(runs, train=error), Voice(events.append))
    assert code == 75
    assert events[-1] == {"event": "disk", "reason": str(error)}
    assert not results.trial_folder(tmp_path, trial(tmp_path).trial_id).result.exists()


def test_after_running_out_of_memory_the_process_ends(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_job(trial(tmp_path))), "not reached"])
    code = worker.serve(lines, tmp_path, "a", lambda runs, sweep: Line(runs, train=MemoryError()), Voice(events.append))
    assert (code, events[-1]) == (0, {"event": "end", "status": "oom"})


# --- the process -----------------------------------------------------------------------------------------------------


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
    one = json.dumps(as_job(trial(tmp_path)))
    arguments = [sys.executable, "-c", code, str(tmp_path), repr(WORKER), one]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "SCRIPT": '{"*": "spawn"}'}
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        told = results.trial_folder(tmp_path, trial(tmp_path).trial_id).path / "grandchild"
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
        process.stdin.write(json.dumps(as_job(trial(tmp_path))).encode() + b"\n")
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
    script = "import sys, lora_sweep.worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
