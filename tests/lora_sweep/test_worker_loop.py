"""What a worker holds to whatever its trials do: claims, outcomes, logs, and nobody left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.scripted import WORKER, job_json, plan_of
from support.scripted_worker import ScriptedRunner

from lora_sweep.errors import Diverged, Preempted
from lora_sweep.messages import Failure, Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from lora_sweep.worker import loop, process
from sweep.trials import PlannedTrial


def trial(runs: Path, number: int = 0) -> PlannedTrial:
    return plan_of(runs, "a", number + 1).trials[number]


def job(runs: Path, number: int = 0, **more: Any) -> Job:
    return Job.from_json(job_json(trial(runs, number), **more))


def as_jobs(runs: Path, count: int = 1) -> dict[str, Any]:
    """The message that gives a worker a pack of so many trials."""
    return {"jobs": [job_json(trial(runs, number)) for number in range(count)]}


class FailingRunner(ScriptedRunner):
    """A script whose stages can be made to raise."""

    def __init__(self, runs: Path, train: BaseException | None = None, evaluate: BaseException | None = None) -> None:
        super().__init__(runs, "a")
        self.errors = {"train": train, "evaluate": evaluate}
        self.mirrored: list[Failure] = []

    def train_one(self, job: Job, reporter: Reporter) -> None:
        if self.errors["train"]:
            raise self.errors["train"]
        super().train_one(job, reporter)

    def evaluate_one(self, job: Job, reporter: Reporter) -> None:
        if self.errors["evaluate"]:
            raise self.errors["evaluate"]
        super().evaluate_one(job, reporter)

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        self.mirrored.append(failure)


def run(runs: Path, runner: FailingRunner, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return loop.run_pack([job(runs, **more)], runs, runner, Reporter(events.append))[0], events


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
    got, events = run(tmp_path, runner)
    assert got == status
    assert runner.mirrored == [Failure(status, reason)]
    found = results.load_record(tmp_path, trial(tmp_path).trial_id, "e0")
    assert (found.status, found.reason) == (status, reason)
    assert f"t0: {status}: {reason}" in [event.get("text") for event in events]
    trained = files.trial_folder(tmp_path, trial(tmp_path).trial_id).adapter.exists()
    assert trained == (stage == "evaluate"), "a fault of the evaluation keeps the adapter"


def test_what_was_a_fault_is_forgotten_by_the_next_attempt(tmp_path: Path) -> None:
    run(tmp_path, FailingRunner(tmp_path, evaluate=ValueError("broken")))
    before = files.trial_folder(tmp_path, trial(tmp_path).trial_id).result.stat().st_mtime_ns
    assert run(tmp_path, FailingRunner(tmp_path))[0] == "complete"
    assert files.trial_folder(tmp_path, trial(tmp_path).trial_id).result.stat().st_mtime_ns == before


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    assert run(tmp_path, FailingRunner(tmp_path))[0] == "complete"
    never = FailingRunner(tmp_path, train=AssertionError("trained again"), evaluate=AssertionError("evaluated again"))
    assert run(tmp_path, never)[0] == "complete"
    assert run(tmp_path, never, stages=["evaluate"])[0] == "complete"


def test_what_diverged_stays_so(tmp_path: Path) -> None:
    run(tmp_path, FailingRunner(tmp_path, train=Diverged("loss is nan")))
    assert run(tmp_path, FailingRunner(tmp_path))[0] == "diverged"


def test_a_trial_that_is_locked_is_left_alone(tmp_path: Path) -> None:
    with hold_lock(files.trial_lock(tmp_path, trial(tmp_path).trial_id)):
        status, events = run(tmp_path, FailingRunner(tmp_path))
    assert (status, [event["event"] for event in events]) == ("busy", ["end"])
    assert not (tmp_path / "trials").exists()


def test_a_stage_at_a_time(tmp_path: Path) -> None:
    assert run(tmp_path, FailingRunner(tmp_path), stages=["train"])[0] == "trained"
    assert run(tmp_path, FailingRunner(tmp_path), stages=["evaluate"])[0] == "complete"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = files.trial_folder(tmp_path, trial(tmp_path).trial_id).path
    (folder / "evals" / "e0").mkdir(parents=True)
    for name in (".result.json.abc.tmp", "evals/e0/.scores.json.abc.tmp"):
        (folder / name).write_text("{")
    run(tmp_path, FailingRunner(tmp_path))
    assert not list(folder.rglob("*.tmp"))


def test_what_a_trial_prints_is_in_its_log_even_from_compiled_code(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[2]); import test_worker_loop as t; from pathlib import Path; "
    code += "t.run_loud(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    log = files.trial_folder(tmp_path, trial(tmp_path).trial_id).log.read_text()
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
    lines = iter([json.dumps(as_jobs(tmp_path)), "not reached"])
    code = loop.run_messages(
        lines, tmp_path, "a", lambda runs, sweep: FailingRunner(runs, train=error), Reporter(events.append)
    )
    assert code == 75
    assert events[-1] == {"event": "disk", "reason": str(error)}
    assert not files.trial_folder(tmp_path, trial(tmp_path).trial_id).result.exists()


def test_after_running_out_of_memory_the_process_ends(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_jobs(tmp_path)), "not reached"])
    code = loop.run_messages(
        lines, tmp_path, "a", lambda runs, sweep: FailingRunner(runs, train=MemoryError()), Reporter(events.append)
    )
    ids = {"trial_id": trial(tmp_path).trial_id, "eval_id": "e0"}
    assert (code, events[-1]) == (0, {"event": "end", "status": "oom", **ids})


# --- packs -----------------------------------------------------------------------------------------------------------


class PackRunner(ScriptedRunner):
    """A script in which ``errors`` makes a stage raise, of one trial (``train_t0``) or of all (``train``).

    ``calls`` lists the stages as they run.
    """

    def __init__(self, runs: Path, **errors: Exception) -> None:
        super().__init__(runs, "a")
        self.errors = errors
        self.calls: list[str] = []
        self.mirrored: list[tuple[str, str]] = []

    def train(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]:
        self.note_stage("train", jobs)
        for reporter in reporters:
            reporter.report_phase("loading")
        yield from super().train(jobs, reporters)

    def evaluate(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]:
        self.note_stage("evaluate", jobs)
        yield from super().evaluate(jobs, reporters)

    def note_stage(self, stage: str, jobs: Sequence[Job]) -> None:
        self.calls.append(" ".join([stage, *(job.label for job in jobs)]))
        if stage in self.errors:
            raise self.errors[stage]

    def train_one(self, job: Job, reporter: Reporter) -> None:
        if f"train_{job.label}" in self.errors:
            raise self.errors[f"train_{job.label}"]
        super().train_one(job, reporter)

    def evaluate_one(self, job: Job, reporter: Reporter) -> None:
        if f"evaluate_{job.label}" in self.errors:
            raise self.errors[f"evaluate_{job.label}"]
        super().evaluate_one(job, reporter)

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        self.mirrored.append((job.label, failure.status))


def run_pack(
    runs: Path, runner: PackRunner, count: int = 3, reporter: Reporter | None = None
) -> tuple[list[str], list[Any]]:
    events: list[dict[str, Any]] = []
    reporter = reporter or Reporter(events.append)
    return loop.run_pack([job(runs, number) for number in range(count)], runs, runner, reporter), events


def status_of(runs: Path, number: int) -> str | None:
    return results.read_outcome(runs, trial(runs, number).trial_id, "e0").status


def test_a_pack_trains_before_it_writes(tmp_path: Path) -> None:
    runner = PackRunner(tmp_path)
    assert run_pack(tmp_path, runner, 2)[0] == ["complete", "complete"]
    assert runner.calls == ["train t0 t1", "evaluate t0 t1"]


def test_every_event_says_which_trial_it_is_about(tmp_path: Path) -> None:
    _, events = run_pack(tmp_path, PackRunner(tmp_path), 2)
    of = {
        number: [e["event"] for e in events if e["trial_id"] == trial(tmp_path, number).trial_id] for number in (0, 1)
    }
    assert of[0] == of[1] == ["start", "phase", "phase", *["step"] * 4, "phase", "end"]
    assert {event["eval_id"] for event in events} == {"e0"}


def test_a_member_that_diverged_leaves_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    runner = PackRunner(tmp_path, train_t1=Diverged("loss is nan"))
    statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["complete", "diverged", "complete"]
    assert runner.calls[1:] == ["evaluate t0 t2"]
    ends = [(e["event"], e["trial_id"]) for e in events if e["event"] in ("end", "phase")]
    left = ends.index(("end", trial(tmp_path, 1).trial_id))
    assert ("phase", trial(tmp_path, 0).trial_id) in ends[left:], "its end was told when the others had ended"
    assert runner.mirrored == [("t1", "diverged")]


def test_one_that_runs_out_of_memory_in_a_pack_is_run_again_with_those_that_wait(tmp_path: Path) -> None:
    """What is done stays: the first's training, and all of the one that left before."""
    runner = PackRunner(tmp_path, train_t0=Diverged("loss is nan"), train_t2=MemoryError("full"))
    statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["diverged", "apart", "apart"]
    assert [status_of(tmp_path, number) for number in range(3)] == ["diverged", None, None]
    folder = files.trial_folder(tmp_path, trial(tmp_path, 1).trial_id)
    assert files.read_json(folder.result)["status"] == "complete"  # type: ignore[index]
    assert not files.trial_folder(tmp_path, trial(tmp_path, 2).trial_id).result.exists()
    assert runner.mirrored == [("t0", "diverged"), ("t1", "preempted"), ("t2", "preempted")]
    assert events[-1]["reason"] == "MemoryError: full"
    assert not list((tmp_path / "locks").glob("*"))


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_failure_of_the_common_work_is_no_members_outcome(stage: str, tmp_path: Path, capsys: Any) -> None:
    runner = PackRunner(tmp_path, **{stage: ValueError("broken")})
    statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["apart"] * 3
    assert [status_of(tmp_path, number) for number in range(3)] == [None] * 3
    ends = [event for event in events if event["event"] == "end"]
    assert [event["reason"] for event in ends] == ["ValueError: broken"] * 3
    assert runner.mirrored == [(f"t{number}", "preempted") for number in range(3)]
    printed = capsys.readouterr().err
    assert printed.count("to run again, alone: ValueError: broken") == 3
    assert printed.count("Traceback") == 1


@pytest.mark.parametrize(("error", "status"), [(MemoryError("full"), "oom"), (ValueError("broken"), "failed")])
def test_the_common_work_of_a_pack_of_one_is_its_own(error: Exception, status: str, tmp_path: Path) -> None:
    assert run_pack(tmp_path, PackRunner(tmp_path, train=error), 1)[0] == [status]
    reason = results.read_outcome(tmp_path, trial(tmp_path).trial_id, "e0").reason
    assert reason == f"{type(error).__name__}: {error}"


def test_the_last_of_a_pack_is_not_alone(tmp_path: Path) -> None:
    """The others are gone, and their memory may not be: it has a second attempt in a process of its own."""
    runner = PackRunner(tmp_path, train_t0=Diverged("loss is nan"), evaluate=MemoryError("full"))
    assert run_pack(tmp_path, runner, 2)[0] == ["diverged", "apart"]


def test_a_stop_during_the_common_work_preempts_every_member(tmp_path: Path) -> None:
    runner = PackRunner(tmp_path, evaluate=Preempted("during generation; the adapter is saved"))
    assert run_pack(tmp_path, runner)[0] == ["preempted"] * 3
    assert [status_of(tmp_path, number) for number in range(3)] == ["preempted"] * 3


def test_a_failure_of_one_member_is_its_own(tmp_path: Path) -> None:
    runner = PackRunner(tmp_path, evaluate_t0=ValueError("broken"))
    assert run_pack(tmp_path, runner)[0] == ["failed", "complete", "complete"]


def test_a_stop_saves_every_member(tmp_path: Path) -> None:
    reporter = Reporter(lambda event: None, is_stop_requested=lambda: True)
    statuses, _ = run_pack(tmp_path, PackRunner(tmp_path), reporter=reporter)
    assert statuses == ["preempted"] * 3
    for number in range(3):
        saved = files.trial_folder(tmp_path, trial(tmp_path, number).trial_id).checkpoints / "checkpoint-1" / "step"
        assert saved.read_text() == "1"


def test_what_is_locked_or_settled_does_not_reach_the_runner(tmp_path: Path) -> None:
    run_pack(tmp_path, PackRunner(tmp_path), 1)
    runner = PackRunner(tmp_path)
    with hold_lock(files.trial_lock(tmp_path, trial(tmp_path, 2).trial_id)):
        statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["complete", "complete", "busy"]
    assert runner.calls == ["train t1", "evaluate t1"]
    assert [e["event"] for e in events if e["trial_id"] != trial(tmp_path, 1).trial_id] == ["end", "end"]


def test_a_stage_that_is_done_does_not_reach_the_runner(tmp_path: Path) -> None:
    run(tmp_path, FailingRunner(tmp_path), stages=["train"])
    runner = PackRunner(tmp_path)
    assert run_pack(tmp_path, runner, 2)[0] == ["complete"] * 2
    assert runner.calls == ["train t1", "evaluate t0 t1"]


def test_an_ended_job_can_be_locked_while_the_others_go_on(tmp_path: Path) -> None:
    free: list[bool] = []

    def send_event(event: dict[str, Any]) -> None:
        if event["event"] == "end":
            with hold_lock(files.trial_lock(tmp_path, event["trial_id"])) as ours:
                free.append(ours)

    run_pack(tmp_path, PackRunner(tmp_path, train_t0=Diverged("loss is nan")), reporter=Reporter(send_event))
    assert free == [True, True, True]


@pytest.mark.parametrize(
    ("errors", "code", "statuses"),
    [
        ({"train_t1": MemoryError()}, 0, ["apart", "apart"]),
        ({"train_t1": Preempted("saved at step 2 of 4")}, 75, ["preempted", "complete"]),
    ],
)
def test_after_a_pack_that_broke_off_the_process_ends(
    errors: dict[str, Any], code: int, statuses: list[str], tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_jobs(tmp_path, 2)), "not reached"])

    def make_runner(runs: Path, sweep: str) -> PackRunner:
        return PackRunner(runs, **errors)

    assert loop.run_messages(lines, tmp_path, "a", make_runner, Reporter(events.append)) == code
    assert [event["status"] for event in events if event["event"] == "end"] == statuses


def test_what_is_said_of_a_member_is_in_its_own_log(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[2]); import test_worker_loop as t; from pathlib import Path; "
    code += "t.run_talking(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for number in range(2):
        log = files.trial_folder(tmp_path, trial(tmp_path, number).trial_id).log.read_text()
        lines = [line.partition(" ")[2] for line in log.splitlines()]
        assert f"of t{number}" in lines
        assert f"of t{1 - number}" not in lines
        assert ("printed by the common work" in lines) == (number == 0)
        assert ("broken" in lines) == ("call last):" in log) == (number == 1), "a traceback is in its trial's log"


def run_talking(runs: Path) -> None:
    """In a process of its own: the common work says a line about each member and prints one, and t1 fails."""

    class Talking(PackRunner):
        def train(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[tuple[Job, Failure | None]]:
            for job, reporter in zip(jobs, reporters, strict=True):
                reporter.report_text(f"of {job.label}")
            print("- printed by the common work")
            yield from super().train(jobs, reporters)

    runner = Talking(runs, evaluate_t1=ValueError("broken"))
    run_pack(runs, runner, 2, Reporter(process.write_events_to(os.open(os.devnull, os.O_WRONLY))))


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
    one = json.dumps(as_jobs(tmp_path))
    arguments = [sys.executable, "-c", code, str(tmp_path), repr(WORKER), one]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "SCRIPT": '{"*": "spawn"}'}
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        told = files.trial_folder(tmp_path, trial(tmp_path).trial_id).path / "grandchild"
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
