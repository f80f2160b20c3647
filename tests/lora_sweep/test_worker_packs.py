"""Packs in a worker: what one member does to the others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.scripted_worker import ScriptedRunner
from support.worker_jobs import FailingRunner, as_jobs, plan_trial, read_job, run_trial

from lora_sweep.errors import Diverged, Preempted
from lora_sweep.messages import Failure, Job, Reporter
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from lora_sweep.worker import loop, process


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
    return loop.run_pack([read_job(runs, number) for number in range(count)], runs, runner, reporter), events


def status_of(runs: Path, number: int) -> str | None:
    return results.read_outcome(runs, plan_trial(runs, number).trial_id, "e0").status


def test_a_pack_trains_before_it_writes(tmp_path: Path) -> None:
    runner = PackRunner(tmp_path)
    assert run_pack(tmp_path, runner, 2)[0] == ["complete", "complete"]
    assert runner.calls == ["train t0 t1", "evaluate t0 t1"]


def test_every_event_says_which_trial_it_is_about(tmp_path: Path) -> None:
    _, events = run_pack(tmp_path, PackRunner(tmp_path), 2)
    of = {
        number: [e["event"] for e in events if e["trial_id"] == plan_trial(tmp_path, number).trial_id]
        for number in (0, 1)
    }
    assert of[0] == of[1] == ["start", "phase", "phase", *["step"] * 4, "phase", "end"]
    assert {event["eval_id"] for event in events} == {"e0"}


def test_a_member_that_diverged_leaves_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    runner = PackRunner(tmp_path, train_t1=Diverged("loss is nan"))
    statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["complete", "diverged", "complete"]
    assert runner.calls[1:] == ["evaluate t0 t2"]
    ends = [(e["event"], e["trial_id"]) for e in events if e["event"] in ("end", "phase")]
    left = ends.index(("end", plan_trial(tmp_path, 1).trial_id))
    assert ("phase", plan_trial(tmp_path, 0).trial_id) in ends[left:], "its end was told when the others had ended"
    assert runner.mirrored == [("t1", "diverged")]


def test_one_that_runs_out_of_memory_in_a_pack_is_run_again_with_those_that_wait(tmp_path: Path) -> None:
    """What is done stays: the first's training, and all of the one that left before."""
    runner = PackRunner(tmp_path, train_t0=Diverged("loss is nan"), train_t2=MemoryError("full"))
    statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["diverged", "apart", "apart"]
    assert [status_of(tmp_path, number) for number in range(3)] == ["diverged", None, None]
    folder = files.trial_folder(tmp_path, plan_trial(tmp_path, 1).trial_id)
    assert files.read_json(folder.result)["status"] == "complete"  # type: ignore[index]
    assert not files.trial_folder(tmp_path, plan_trial(tmp_path, 2).trial_id).result.exists()
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
    reason = results.read_outcome(tmp_path, plan_trial(tmp_path).trial_id, "e0").reason
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
        saved = (
            files.trial_folder(tmp_path, plan_trial(tmp_path, number).trial_id).checkpoints / "checkpoint-1" / "step"
        )
        assert saved.read_text() == "1"


def test_what_is_locked_or_settled_does_not_reach_the_runner(tmp_path: Path) -> None:
    run_pack(tmp_path, PackRunner(tmp_path), 1)
    runner = PackRunner(tmp_path)
    with hold_lock(files.trial_lock(tmp_path, plan_trial(tmp_path, 2).trial_id)):
        statuses, events = run_pack(tmp_path, runner)
    assert statuses == ["complete", "complete", "busy"]
    assert runner.calls == ["train t1", "evaluate t1"]
    assert [e["event"] for e in events if e["trial_id"] != plan_trial(tmp_path, 1).trial_id] == ["end", "end"]


def test_a_stage_that_is_done_does_not_reach_the_runner(tmp_path: Path) -> None:
    run_trial(tmp_path, FailingRunner(tmp_path), stages=["train"])
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
    code = "import sys; sys.path.insert(0, sys.argv[2]); import test_worker_packs as t; from pathlib import Path; "
    code += "t.run_talking(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for number in range(2):
        log = files.trial_folder(tmp_path, plan_trial(tmp_path, number).trial_id).log.read_text()
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
