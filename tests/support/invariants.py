"""What must hold of a runs folder whatever happened to the processes that wrote it: for the tests that kill them.

Knows the scripted trials alone: what each must contain is what a sweep of the same trials contains that nobody
disturbed.
"""

import contextlib
import csv
import functools
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from support import faulty

from lora_sweep.runs import files, results
from sweep.engines.policy import MAX_DEATHS
from sweep.store.sweep_file import name_sweep
from sweep.store.trial_state import is_mirrored
from sweep.trials import Key, Plan

Event = dict[str, Any]
TOP = {"trials", "sweeps", "quarantine", "locks"}
NOT_CONTENT = {"log.txt", "setbacks.jsonl", "grandchild", "pid", "trainings"}
REPORTS = {"report.md", "report.csv", "report.json", "report.html"}


def check(runs: Path, plan: Plan, *, finished: bool, touched: frozenset[str] | set[str] = frozenset()) -> None:
    """Assert everything that must hold for the sweep of ``plan``.

    Args:
        finished: whether a command of the sweep has come to its end since, and no process of it may be left.
        touched: ids of trials whose files somebody else removed or changed since they were acknowledged.
    """
    outside = {path.name for path in runs.parent.iterdir()} - {runs.name}
    assert not outside, f"written outside the runs folder: {outside}"
    events = events_of(runs, name_sweep(plan), whole=finished and not touched)
    free = set(touched) | quarantined(runs)
    check_acknowledged(runs, events, free)
    check_attempts(runs, plan, events)
    if finished:
        assert not poll_gone(runs), "processes are left"
        check_folder(runs, plan)
        check_contents(runs, plan)


def events_of(runs: Path, name: str, whole: bool = False) -> list[Event]:
    """The events of a sweep's log; of torn lines, what a kill leaves must have been closed by whoever wrote next."""
    path = files.events_file(runs, name)
    if not path.exists():
        return []
    data = path.read_bytes()
    assert not whole or data.endswith(b"\n"), "the log's last line is torn"
    found = []
    for line in data.split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            assert line.count(b'{"time"') <= 1, f"a line was appended to a torn one: {line!r}"
    return found


def quarantined(runs: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (runs / "quarantine").glob("*-*") if path.is_dir()}


def check_acknowledged(runs: Path, events: list[Event], free: set[str]) -> None:
    """What a log says is complete is there, in the very bytes, and was not run again.

    Args:
        free: ids of trials that may have been moved aside, or removed by a person, in between.
    """
    said: dict[tuple[Key, str], Event] = {}
    for event in events:
        key = event.get("trial_id", ""), event.get("eval_id", "")
        if event["event"] == "start" and key[0] not in free:
            assert (key, "complete") not in said, f"started after its end: {event}"
        if event["event"] == "end" and event["status"] in ("complete", "trained"):
            assert event["sha256"], f"complete without a result: {event}"
            assert key[0] in free or (key, event["status"]) not in said, f"complete twice: {event}"
            said[key, event["status"]] = event
    for (key, status), event in said.items():
        folder = files.trial_folder(runs, key[0])
        path = folder.result if status == "trained" else folder.evaluation(key[1]).result
        if key[0] not in free:
            assert path.exists(), f"lost: {event}"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == event["sha256"], f"altered: {event}"
            assert results.find_damage(path) is None, f"{event}: {results.find_damage(path)}"


def check_attempts(runs: Path, plan: Plan, events: list[Event]) -> None:
    """A trial costs at most MAX_DEATHS workers, until it is asked for again."""
    deaths: Counter[str] = Counter()
    for event in events:
        if event["event"] == "end" and event["status"] == "killed":  # only whoever asks for it again starts it again
            deaths.pop(event["trial_id"], None)
        if event["event"] == "death":
            deaths[event["trial_id"]] += 1
        assert all(count <= MAX_DEATHS for count in deaths.values()), f"too many attempts: {deaths}"
    for trial in plan.trials:
        lines = files.read_jsonl(files.trial_folder(runs, trial.trial_id).setbacks)
        assert sum(line["how"] == "death" for line in lines) <= MAX_DEATHS, f"too many attempts: {lines}"


def check_folder(runs: Path, plan: Plan) -> None:
    """Every trial of the plan has an outcome, and nothing lies about."""
    name = name_sweep(plan)
    names = {path.name for path in runs.iterdir()}
    assert names <= TOP, f"strangers: {names - TOP}"
    assert not list((runs / "locks").glob("*")), f"locks are left: {list((runs / 'locks').glob('*'))}"
    left = [path for path in runs.rglob("*.tmp") if "quarantine" not in path.parts]
    assert not left, f"half-written files are left: {left}"
    assert not files.progress_file(runs, name).exists(), "progress of a sweep that is over"
    assert is_mirrored(runs, name), "the sweep's own run of W&B is not of its last run"
    listed = {
        (row["trial_id"], row["eval_id"]) for row in json.loads(files.sweep_file(runs, name).read_text())["trials"]
    }
    assert {trial.key for trial in plan.trials} <= listed
    names = {path.name for path in files.report_folder(runs, name).iterdir()}
    names = {file for file in names if not file.startswith("worker-")}
    assert REPORTS <= names <= REPORTS | {"events.jsonl"}  # no log where another sweep ran every trial
    others = (files.read_json(path) or {} for path in (runs / "sweeps").glob("*.json"))
    known = {row["trial_id"] for other in others for row in other["trials"]}
    assert {path.name for path in (runs / "trials").iterdir()} <= known, "a folder of no trial"
    with (files.report_folder(runs, name) / "report.csv").open(newline="", encoding="utf-8") as file:
        reported = {row["trial_id"]: row["status"] for row in csv.DictReader(file)}
    for trial in plan.trials:
        outcome = results.read_outcome(runs, *trial.key)
        assert outcome.status in results.STATUSES, f"{trial.label} has no outcome"
        assert reported[trial.trial_id] == outcome.status


def check_contents(runs: Path, plan: Plan) -> None:
    """A complete trial contains what it would in an undisturbed sweep, and nothing more."""
    wanted = undisturbed(len(plan.trials))
    for trial in plan.trials:
        folder = files.trial_folder(runs, trial.trial_id)
        for path in (folder.result, folder.evaluation(trial.eval_id).result):
            assert results.find_damage(path) is None, f"{trial.label}: {results.find_damage(path)}"
        if results.read_outcome(runs, *trial.key).status == "complete":
            assert not folder.checkpoints.exists(), f"{trial.label} is complete and has checkpoints"
            assert contents(folder.path) == wanted[trial.trial_id], f"{trial.label} is not as in an undisturbed sweep"


def contents(folder: Path) -> dict[str, Any]:
    """A trial's files but for its log and what depends on how often it was disturbed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name in NOT_CONTENT:
            continue
        found[name] = path.read_bytes()
        if path.name == "result.json":
            value = json.loads(found[name])
            found[name] = {key: item for key, item in value.items() if key not in ("seal", "setbacks", "halved")}
    return found


@functools.cache
def undisturbed(count: int) -> dict[str, dict[str, Any]]:
    """The contents of each trial of a sweep that nobody disturbed, by its id."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        done = faulty.run(runs, "undisturbed", count)
        assert done.code == 0, done.text
        return {path.name: contents(path) for path in (runs / "trials").iterdir()}


# --- processes ---------------------------------------------------------------------------------------------------


def processes_of(runs: Path) -> set[int]:
    """The living processes that have this runs folder in their command or their environment, without this one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes() + b"\0"
            ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:  # it is gone, or another user's
            continue
        if not ended and os.fsencode(runs) + b"\0" in told:
            found.add(int(entry.name))
    return found


def poll_gone(runs: Path, within: float = 10) -> set[int]:
    """The processes that are left after a grace."""
    deadline = time.monotonic() + within
    while (left := processes_of(runs)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def workers_of(pid: int) -> list[int]:
    """An orchestrator's living worker processes; it has other children too, for an instant."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"worker" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                found.append(child)
    return found


def children(pid: int) -> list[int]:
    """The living children of a process, oldest first."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
