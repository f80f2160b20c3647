"""What a worker does whatever its trials do: locks, outcomes and logs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.worker_jobs import FailingRunner, as_jobs, plan_trial, run_trial

from lora_sweep.errors import Diverged, Preempted
from lora_sweep.messages import Failure, Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from lora_sweep.worker import loop

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
    runner = FailingRunner(tmp_path, **{stage: error})
    got, events = run_trial(tmp_path, runner)
    assert got == status
    assert runner.mirrored == [Failure(status, reason)]
    found = results.load_record(tmp_path, plan_trial(tmp_path).trial_id, "e0")
    assert (found.status, found.reason) == (status, reason)
    assert f"t0: {status}: {reason}" in [event.get("text") for event in events]
    trained = files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).adapter.exists()
    assert trained == (stage == "evaluate"), "a fault of the evaluation keeps the adapter"


def test_what_was_a_fault_is_forgotten_by_the_next_attempt(tmp_path: Path) -> None:
    run_trial(tmp_path, FailingRunner(tmp_path, evaluate=ValueError("broken")))
    before = files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).result.stat().st_mtime_ns
    assert run_trial(tmp_path, FailingRunner(tmp_path))[0] == "complete"
    assert files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).result.stat().st_mtime_ns == before


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    assert run_trial(tmp_path, FailingRunner(tmp_path))[0] == "complete"
    never = FailingRunner(tmp_path, train=AssertionError("trained again"), evaluate=AssertionError("evaluated again"))
    assert run_trial(tmp_path, never)[0] == "complete"
    assert run_trial(tmp_path, never, stages=["evaluate"])[0] == "complete"


def test_what_diverged_stays_so(tmp_path: Path) -> None:
    run_trial(tmp_path, FailingRunner(tmp_path, train=Diverged("loss is nan")))
    assert run_trial(tmp_path, FailingRunner(tmp_path))[0] == "diverged"


def test_a_trial_that_is_locked_is_left_alone(tmp_path: Path) -> None:
    with hold_lock(files.trial_lock(tmp_path, plan_trial(tmp_path).trial_id)):
        status, events = run_trial(tmp_path, FailingRunner(tmp_path))
    assert (status, [event["event"] for event in events]) == ("busy", ["end"])
    assert not (tmp_path / "trials").exists()


def test_a_stage_at_a_time(tmp_path: Path) -> None:
    assert run_trial(tmp_path, FailingRunner(tmp_path), stages=["train"])[0] == "trained"
    assert run_trial(tmp_path, FailingRunner(tmp_path), stages=["evaluate"])[0] == "complete"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).path
    (folder / "evals" / "e0").mkdir(parents=True)
    for name in (".result.json.abc.tmp", "evals/e0/.scores.json.abc.tmp"):
        (folder / name).write_text("{")
    run_trial(tmp_path, FailingRunner(tmp_path))
    assert not list(folder.rglob("*.tmp"))


def test_what_a_trial_prints_is_in_its_log_even_from_compiled_code(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[2]); import test_worker_loop as t; from pathlib import Path; "
    code += "t.run_loud(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    log = files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).log.read_text()
    for words in ("from python\n", "from python's stderr\n", "from below\n"):
        assert words in log
        assert words not in done.stdout + done.stderr
    assert "after" in done.stdout


def run_loud(runs: Path) -> None:
    """In a process of its own, for what it prints is caught at the level of the system."""

    class Loud(FailingRunner):
        def train_one(self, job: Job, reporter: Reporter) -> None:
            print("from python")
            print("from python's stderr", file=sys.stderr)
            os.write(1, b"from below\n")
            super().train_one(job, reporter)

    run_trial(runs, Loud(runs))
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
    lines = iter([json.dumps(as_jobs(tmp_path)), "not reached"])
    code = loop.run_messages(
        lines, tmp_path, "a", lambda runs, sweep: FailingRunner(runs, train=error), Reporter(events.append)
    )
    assert code == 75
    assert events[-1] == {"event": "disk", "reason": str(error)}
    assert not files.trial_folder(tmp_path, plan_trial(tmp_path).trial_id).result.exists()


def test_after_running_out_of_memory_the_process_ends(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_jobs(tmp_path)), "not reached"])
    code = loop.run_messages(
        lines, tmp_path, "a", lambda runs, sweep: FailingRunner(runs, train=MemoryError()), Reporter(events.append)
    )
    ids = {"trial_id": plan_trial(tmp_path).trial_id, "eval_id": "e0"}
    assert (code, events[-1]) == (0, {"event": "end", "status": "oom", **ids})
