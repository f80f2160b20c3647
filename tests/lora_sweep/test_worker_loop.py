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
from support.scripted import WORKER, Script, plan_of

from lora_sweep.errors import Apart, Diverged, Preempted
from lora_sweep.messages import Job, Voice
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import claim
from lora_sweep.worker import loop
from sweep.engines.local.worker_process import as_job
from sweep.trials import PlannedTrial


def trial(runs: Path, number: int = 0) -> PlannedTrial:
    return plan_of(runs, "a", number + 1).trials[number]


def job(runs: Path, number: int = 0, **more: Any) -> Job:
    return Job.from_json(json.loads(json.dumps(as_job(trial(runs, number), **more))))


def as_jobs(runs: Path, count: int = 1) -> dict[str, Any]:
    """The message that gives a worker a pack of so many trials."""
    return {"jobs": [as_job(trial(runs, number)) for number in range(count)]}


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
    return loop.run_job(job(runs, **more), runs, line, Voice(events.append)), events


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
    found = results.load_record(tmp_path, trial(tmp_path).trial_id, "e0")
    assert (found.status, found.reason) == (status, reason)
    assert f"t0: {status}: {reason}" in [event.get("text") for event in events]
    trained = files.trial_folder(tmp_path, trial(tmp_path).trial_id).adapter.exists()
    assert trained == (stage == "evaluate"), "a fault of the evaluation keeps the adapter"


def test_what_was_a_fault_is_forgotten_by_the_next_attempt(tmp_path: Path) -> None:
    run(tmp_path, Line(tmp_path, evaluate=ValueError("broken")))
    before = files.trial_folder(tmp_path, trial(tmp_path).trial_id).result.stat().st_mtime_ns
    assert run(tmp_path, Line(tmp_path))[0] == "complete"
    assert files.trial_folder(tmp_path, trial(tmp_path).trial_id).result.stat().st_mtime_ns == before


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    assert run(tmp_path, Line(tmp_path))[0] == "complete"
    never = Line(tmp_path, train=AssertionError("trained again"), evaluate=AssertionError("evaluated again"))
    assert run(tmp_path, never)[0] == "complete"
    assert run(tmp_path, never, stages=["evaluate"])[0] == "complete"


def test_what_diverged_stays_so(tmp_path: Path) -> None:
    run(tmp_path, Line(tmp_path, train=Diverged("loss is nan")))
    assert run(tmp_path, Line(tmp_path))[0] == "diverged"


def test_a_trial_that_is_claimed_is_left_alone(tmp_path: Path) -> None:
    with claim(files.trial_lock(tmp_path, trial(tmp_path).trial_id)):
        status, events = run(tmp_path, Line(tmp_path))
    assert (status, [event["event"] for event in events]) == ("busy", ["end"])
    assert not (tmp_path / "trials").exists()


def test_a_stage_at_a_time(tmp_path: Path) -> None:
    assert run(tmp_path, Line(tmp_path), stages=["train"])[0] == "trained"
    assert run(tmp_path, Line(tmp_path), stages=["evaluate"])[0] == "complete"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = files.trial_folder(tmp_path, trial(tmp_path).trial_id).path
    (folder / "evals" / "e0").mkdir(parents=True)
    for name in (".result.json.abc.tmp", "evals/e0/.scores.json.abc.tmp"):
        (folder / name).write_text("{")
    run(tmp_path, Line(tmp_path))
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
    lines = iter([json.dumps(as_jobs(tmp_path)), "not reached"])
    code = loop.serve(lines, tmp_path, "a", lambda runs, sweep: Line(runs, train=error), Voice(events.append))
    assert code == 75
    assert events[-1] == {"event": "disk", "reason": str(error)}
    assert not files.trial_folder(tmp_path, trial(tmp_path).trial_id).result.exists()


def test_after_running_out_of_memory_the_process_ends(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_jobs(tmp_path)), "not reached"])
    code = loop.serve(lines, tmp_path, "a", lambda runs, sweep: Line(runs, train=MemoryError()), Voice(events.append))
    ids = {"trial_id": trial(tmp_path).trial_id, "eval_id": "e0"}
    assert (code, events[-1]) == (0, {"event": "end", "status": "oom", **ids})


# --- packs -----------------------------------------------------------------------------------------------------------


class Pack(Script):
    """A line that does what ``does`` says of a stage of a trial, and notes what it was asked."""

    def __init__(self, runs: Path, **does: Any) -> None:
        super().__init__(runs, "a")
        self.does, self.asked = does, []
        self.told: list[tuple[str, str]] = []

    def together(self, jobs: list[Job], voices: list[Voice]) -> None:
        self.asked.append("together " + " ".join(job.label for job in jobs))
        for voice in voices:
            voice.phase("loading")

    def stage(self, name: str, job: Job) -> None:
        self.asked.append(f"{name} {job.label}")
        error = self.does.get(f"{name}_{job.label}")
        if error:
            raise error

    def train(self, job: Job, voice: Voice) -> None:
        self.stage("train", job)
        super().train(job, voice)

    def evaluate(self, job: Job, voice: Voice) -> None:
        self.stage("evaluate", job)
        super().evaluate(job, voice)

    def failed(self, job: Job, status: str, reason: str) -> None:
        self.told.append((job.label, status))


def run_pack(runs: Path, line: Pack, count: int = 3, voice: Voice | None = None) -> tuple[list[str], list[Any]]:
    events: list[dict[str, Any]] = []
    voice = voice or Voice(events.append)
    return loop.run_pack([job(runs, number) for number in range(count)], runs, line, voice), events


def status_of(runs: Path, number: int) -> str | None:
    return results.read_outcome(runs, trial(runs, number).trial_id, "e0").status


def test_a_pack_trains_before_it_writes_and_knows_its_members_first(tmp_path: Path) -> None:
    line = Pack(tmp_path)
    assert run_pack(tmp_path, line, 2)[0] == ["complete", "complete"]
    assert line.asked == ["together t0 t1", "train t0", "train t1", "evaluate t0", "evaluate t1"]


def test_every_event_says_which_trial_it_is_about(tmp_path: Path) -> None:
    _, events = run_pack(tmp_path, Pack(tmp_path), 2)
    of = {
        number: [e["event"] for e in events if e["trial_id"] == trial(tmp_path, number).trial_id] for number in (0, 1)
    }
    assert of[0] == of[1] == ["start", "phase", "phase", *["step"] * 4, "phase", "end"]
    assert {event["eval_id"] for event in events} == {"e0"}


def test_a_member_that_diverged_leaves_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    line = Pack(tmp_path, train_t1=Diverged("loss is nan"))
    statuses, events = run_pack(tmp_path, line)
    assert statuses == ["complete", "diverged", "complete"]
    assert line.asked[4:] == ["evaluate t0", "evaluate t2"]
    ends = [(e["event"], e["trial_id"]) for e in events if e["event"] in ("end", "phase")]
    left = ends.index(("end", trial(tmp_path, 1).trial_id))
    assert ("phase", trial(tmp_path, 0).trial_id) in ends[left:], "its end was told when the others had ended"
    assert line.told == [("t1", "diverged")]


@pytest.mark.parametrize("error", [MemoryError("full"), Apart("out of memory for all")])
def test_what_no_member_is_known_to_have_caused_is_no_members_outcome(error: Exception, tmp_path: Path) -> None:
    """What is done stays: the first's training, and all of the one that left before."""
    line = Pack(tmp_path, train_t0=Diverged("loss is nan"), train_t2=error)
    statuses, events = run_pack(tmp_path, line)
    assert statuses == ["diverged", "apart", "apart"]
    assert [status_of(tmp_path, number) for number in range(3)] == ["diverged", None, None]
    folder = files.trial_folder(tmp_path, trial(tmp_path, 1).trial_id)
    assert files.read_json(folder.result)["status"] == "complete"  # type: ignore[index]
    assert not files.trial_folder(tmp_path, trial(tmp_path, 2).trial_id).result.exists()
    assert line.told == [("t0", "diverged"), ("t1", "preempted"), ("t2", "preempted")]
    assert str(error) in events[-1]["reason"]
    assert not list((tmp_path / "locks").glob("*"))


def test_a_pack_of_one_has_the_cause_as_its_outcome(tmp_path: Path) -> None:
    apart = Apart("out of memory for all")
    apart.__cause__ = MemoryError("full")
    assert run_pack(tmp_path, Pack(tmp_path, train_t0=apart), 1)[0] == ["oom"]
    assert results.read_outcome(tmp_path, trial(tmp_path).trial_id, "e0").reason == "MemoryError: full"


def test_a_failure_of_one_member_is_its_own(tmp_path: Path) -> None:
    line = Pack(tmp_path, evaluate_t0=ValueError("broken"))
    assert run_pack(tmp_path, line)[0] == ["failed", "complete", "complete"]


def test_a_stop_saves_every_member(tmp_path: Path) -> None:
    statuses, _ = run_pack(tmp_path, Pack(tmp_path), voice=Voice(lambda event: None, stop=lambda: True))
    assert statuses == ["preempted"] * 3
    for number in range(3):
        saved = files.trial_folder(tmp_path, trial(tmp_path, number).trial_id).checkpoints / "checkpoint-1" / "step"
        assert saved.read_text() == "1"


def test_who_is_claimed_or_settled_is_not_told_to_the_line(tmp_path: Path) -> None:
    run_pack(tmp_path, Pack(tmp_path), 1)
    line = Pack(tmp_path)
    with claim(files.trial_lock(tmp_path, trial(tmp_path, 2).trial_id)):
        statuses, events = run_pack(tmp_path, line)
    assert statuses == ["complete", "complete", "busy"]
    assert line.asked == ["together t1", "train t1", "evaluate t1"]
    assert [e["event"] for e in events if e["trial_id"] != trial(tmp_path, 1).trial_id] == ["end", "end"]


def test_who_left_can_be_claimed_while_the_others_go_on(tmp_path: Path) -> None:
    free: list[bool] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "end":
            with claim(files.trial_lock(tmp_path, event["trial_id"])) as ours:
                free.append(ours)

    run_pack(tmp_path, Pack(tmp_path, train_t0=Diverged("loss is nan")), voice=Voice(tell))
    assert free == [True, True, True]


@pytest.mark.parametrize(
    ("does", "code", "statuses"),
    [
        ({"train_t1": MemoryError()}, 0, ["apart", "apart"]),
        ({"train_t1": Preempted("saved at step 2 of 4")}, 75, ["preempted", "complete"]),
    ],
)
def test_after_a_pack_that_broke_off_the_process_ends(
    does: dict[str, Any], code: int, statuses: list[str], tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    lines = iter([json.dumps(as_jobs(tmp_path, 2)), "not reached"])
    assert loop.serve(lines, tmp_path, "a", lambda runs, sweep: Pack(runs, **does), Voice(events.append)) == code
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
        assert [line.partition(" ")[2] for line in log.splitlines()] == [f"of t{number}"]


def run_talking(runs: Path) -> None:
    """In a process of its own: the first member's stage says a line about each."""

    class Talking(Pack):
        def together(self, jobs: list[Job], voices: list[Voice]) -> None:
            self.all = list(zip(jobs, voices, strict=True))

        def train(self, job: Job, voice: Voice) -> None:
            for each, its in self.all if job is self.all[0][0] else []:
                its.say(f"of {each.label}")
            super().train(job, voice)

    run_pack(runs, Talking(runs), 2, Voice(loop.events_to(os.open(os.devnull, os.O_WRONLY))))


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
