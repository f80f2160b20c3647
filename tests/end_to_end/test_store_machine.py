"""Any order of runs, kills, damage and edits: what was acknowledged stays, and what was damaged is made again."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.faulty import ended, poll, run, start
from support.invariants import check, events_of, poll_gone, workers_of
from support.scripted import plan_of

from lora_sweep.runs import files, results
from sweep.store import trial_state

SWEEPS = {"one": 3, "two": 4}  # trials of each: three are of both
POINTS = (
    "trial locked",
    "started",
    "renamed",
    "appended",
    "stage done",
    "outcome heard",
    "before job",
    "prepared",
    "mirrored",
)
PACKS = st.sampled_from([1, "auto"])
QUICK = settings(
    max_examples=6,
    stateful_step_count=7,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink a failure would take many minutes
    suppress_health_check=list(HealthCheck),
)


class Store(RuleBasedStateMachine):
    """A runs folder with two sweeps that share trials.

    Attributes:
        running: the sweep that is under way, by its name; its first trial hangs.
        touched: ids of trials that a person changed since their last run, and that may so be gone or run again.
        seen: the result that each complete trial had when a command last ended: one is never replaced unasked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="store-"))
        self.runs = self.home / "home" / "runs"
        self.runs.parent.mkdir()
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.touched: set[str] = set()
        self.seen: dict[str, bytes] = {}
        self.crashes = 0
        self.packed = False

    def teardown(self) -> None:
        for process in self.running.values():
            process.kill()
            ended(process)
        left = poll_gone(self.runs)
        shutil.rmtree(self.home)
        assert not left

    # --- runs and kills ------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.running)
    @rule(name=st.sampled_from(sorted(SWEEPS)), pack=PACKS)
    def finish(self, name: str, pack: int | str) -> None:
        """A command that nobody disturbs."""
        done = run(self.runs, name, SWEEPS[name], pack=pack)
        assert done.code == 0, done.text
        check(self.runs, plan_of(self.runs, name, SWEEPS[name]), finished=True, touched=self.touched)
        self.look()

    @precondition(lambda self: not self.running)
    @rule(name=st.sampled_from(sorted(SWEEPS)), point=st.sampled_from(POINTS), k=st.integers(1, 8), pack=PACKS)
    def crash(self, name: str, point: str, k: int, pack: int | str) -> None:
        """A command during which one process dies at some place, if it comes there."""
        self.crashes += 1
        flag = self.home / f"crash-{self.crashes}"
        done = run(self.runs, name, SWEEPS[name], crash=f"{point}:{k}:{flag}", pack=pack)
        assert done.code in (0, -signal.SIGKILL), done.text

    @precondition(lambda self: not self.running)
    @rule(name=st.sampled_from(sorted(SWEEPS)), pack=PACKS)
    def hang(self, name: str, pack: int | str) -> None:
        """A command that stays under way: its last trial hangs, if it is still to be run."""
        script = {f"t{SWEEPS[name] - 1}": "hang"}
        process = start(self.runs, name, SWEEPS[name], script, grace_seconds=0, pack=pack)
        self.packed = pack != 1
        log = files.trial_folder(self.runs, self.last(name)).path / "trainings"
        before = log.read_text() if log.exists() else ""
        poll(lambda: process.poll() is not None or (log.exists() and log.read_text() != before))
        if process.poll() is None:
            self.running[name] = process
        else:
            assert ended(process).code == 0

    @precondition(lambda self: self.running)
    @rule(whom=st.sampled_from(["sweep", "both", "worker, again and again", "a signal", "two"]))
    def end(self, whom: str) -> None:
        """The sweep that is under way ends, one way or another."""
        ((name, process),) = self.running.items()
        self.running.clear()
        if whom == "worker, again and again":  # three times alone, and before that in a pack
            told = files.trial_folder(self.runs, self.last(name)).path / "pid"
            for _ in range(3 + self.packed):
                poll(lambda: process.poll() is not None or told.read_text() in map(str, workers_of(process.pid)))
                if process.poll() is None:
                    worker = int(told.read_text())
                    os.kill(worker, signal.SIGKILL)
                    poll(lambda worker=worker: worker not in workers_of(process.pid))
            assert ended(process).code == 1
            assert results.read_outcome(self.runs, self.last(name), "e0").status == "killed"
            done = run(self.runs, name, SWEEPS[name], retry="failed")
            assert done.code == 0, done.text
            return
        if whom == "two":
            process.send_signal(signal.SIGTERM)
        if whom == "both":
            for worker in workers_of(process.pid):
                os.kill(worker, signal.SIGKILL)
        process.send_signal(signal.SIGTERM if whom in ("a signal", "two") else signal.SIGKILL)
        assert ended(process).code in (75, -signal.SIGKILL)

    @precondition(lambda self: self.running)
    @rule()
    def ask_for_it_again(self) -> None:
        """A second command of the sweep that is under way changes nothing."""
        ((name, process),) = self.running.items()
        done = run(self.runs, name, SWEEPS[name])
        assert done.code == 78, done.text
        assert f"is run by pid {process.pid} on {os.uname().nodename}, since " in done.text

    @precondition(lambda self: self.running)
    @rule()
    def run_the_other(self) -> None:
        """A second sweep that shares trials, at the same time: it waits for the trial that hangs, and is stopped."""
        ((name, process),) = self.running.items()
        other = next(each for each in SWEEPS if each != name)
        second = start(self.runs, other, SWEEPS[other], grace_seconds=5)
        shared = name == "one" or self.packed  # what it is at is the other's too
        if shared:
            poll(lambda: workers_of(second.pid) or second.poll() is not None)
            second.send_signal(signal.SIGTERM)
            assert ended(second).code in (0, 75)
        else:
            assert ended(second).code == 0
            check(self.runs, plan_of(self.runs, other, SWEEPS[other]), finished=False, touched=self.touched)
        assert process.poll() is None

    def last(self, name: str) -> str:
        return plan_of(self.runs, name, SWEEPS[name]).trials[-1].trial_id

    # --- damage and edits ----------------------------------------------------------------------------------------

    @precondition(lambda self: not self.running and self.complete())
    @rule(pick=st.integers(0, 3), what=st.sampled_from(["flip", "truncate", "edit result", "edit scores"]))
    def corrupt(self, pick: int, what: str) -> None:
        folder = self.pick(pick)
        evaluation = folder.evaluation("e0")
        if what == "flip":
            path = folder.adapter / "adapter.bin"
            data = bytearray(path.read_bytes())
            data[pick] ^= 1
            path.write_bytes(data)
        elif what == "truncate":
            path = evaluation.result
            path.write_bytes(path.read_bytes()[:-9])
        else:
            path = evaluation.result if what == "edit result" else evaluation.scores
            value = json.loads(path.read_text())
            value["metrics" if what == "edit result" else "means"]["quality"] = 99.0
            path.write_text(json.dumps(value))

    @precondition(lambda self: not self.running and self.complete())
    @rule(pick=st.integers(0, 3), what=st.sampled_from(["trial", "evals", "reports", "log"]))
    def edit(self, pick: int, what: str) -> None:
        """A person deletes something."""
        folder = self.pick(pick)
        if what == "trial":
            shutil.rmtree(folder.path)
        elif what == "evals":
            shutil.rmtree(folder.path / "evals")
        for name in SWEEPS:
            log = files.events_file(self.runs, name)
            if what == "log" and log.exists():
                log.write_bytes(log.read_bytes()[: -40 * (pick + 1)])
            if what == "reports":
                for report in log.parent.glob("report.*"):
                    report.unlink()

    # --- the model -----------------------------------------------------------------------------------------------

    def complete(self) -> list[str]:
        """The ids of trials that are complete, as their files say."""
        found = (path.name for path in (self.runs / "trials").glob("*"))
        return sorted(each for each in found if results.read_outcome(self.runs, each, "e0").status == "complete")

    def pick(self, number: int) -> files.TrialFolder:
        """A complete trial, which is then no more as it was acknowledged."""
        ids = self.complete()
        chosen = ids[number % len(ids)]
        self.touched.add(chosen)
        self.seen.pop(chosen, None)
        return files.trial_folder(self.runs, chosen)

    def look(self) -> None:
        for trial in self.complete():
            self.seen[trial] = files.trial_folder(self.runs, trial).result.read_bytes()

    @invariant()
    def what_was_complete_still_is(self) -> None:
        for trial, data in self.seen.items():
            assert files.trial_folder(self.runs, trial).result.read_bytes() == data

    @invariant()
    def nothing_is_lost(self) -> None:
        for name, count in SWEEPS.items():
            check(self.runs, plan_of(self.runs, name, count), finished=False, touched=self.touched)


@pytest.mark.slow  # test_kill_loop kills at random moments in the fast tier
def test_a_store_through_anything() -> None:
    run_state_machine_as_test(Store, settings=QUICK)


def test_a_torn_log_is_closed_by_the_next_writer(tmp_path: Path) -> None:
    runs = tmp_path / "home" / "runs"
    assert run(runs, "one", 1).code == 0
    log = files.events_file(runs, "one")
    log.write_bytes(log.read_bytes()[:-30])
    assert run(runs, "one", 2).code == 0
    check(runs, plan_of(runs, "one", 2), finished=True)
    assert [event["event"] for event in events_of(runs, "one")] == [
        "begin",
        "start",
        "end",
        "finish",
        "begin",
        "start",
        "end",
        "finish",
        "mirrored",
    ]


def test_what_another_sweep_repaired_is_left_alone(tmp_path: Path) -> None:
    """Between our look at a broken trial and our lock of it, another sweep has moved it aside and run it again."""
    runs = tmp_path / "home" / "runs"
    assert run(runs, "one", 1).code == 0
    (trial,) = plan_of(runs, "one", 1).trials
    torn = trial_state.TrialState("broken", "result.json is torn")
    assert trial_state.prepare_trial(trial, torn, runs, retry_failed=False) is None
    assert trial_state.read_trial_state(trial, runs).name == "done"


def test_a_forgotten_failure_has_all_its_attempts(tmp_path: Path) -> None:
    """A kill while a failure is forgotten leaves no old deaths that count against the new attempts."""
    runs, flag = tmp_path / "home" / "runs", tmp_path / "flag"
    assert run(runs, "one", 1, {"t0": "die"}).code == 1
    assert run(runs, "one", 1, crash=f"failure forgotten:1:{flag}", retry="failed").code == -signal.SIGKILL
    assert run(runs, "one", 1, {"t0": "die when done"}).code == 0


@pytest.mark.crash
def test_a_store_through_much() -> None:
    run_state_machine_as_test(Store, settings=settings(QUICK, max_examples=50, stateful_step_count=20))
