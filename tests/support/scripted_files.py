"""What the files of the scripted sweep ``s`` say: for the tests that send signals, set limits and run packs."""

import json
from pathlib import Path
from typing import Any

from support.invariants import Event, events_of
from support.scripted import plan_of

from lora_sweep.runs import files, results
from lora_sweep.runs.records import EvaluationResult, TrialResult


def find_folder(runs: Path, number: int) -> files.TrialFolder:
    """The folder of the trial t0, t1, ... with this number."""
    return files.trial_folder(runs, plan_of(runs, "s", number + 1).trials[number].trial_id)


def read_outcome(runs: Path, number: int) -> TrialResult | EvaluationResult:
    return results.read_outcome(runs, find_folder(runs, number).path.name, "e0")


def read_statuses(runs: Path, count: int = 3) -> list[str | None]:
    return [read_outcome(runs, number).status for number in range(count)]


def read_result(runs: Path, number: int) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(find_folder(runs, number).result.read_text())
    return result


def list_failed_attempts(runs: Path, count: int = 3) -> list[list[str]]:
    """How each failed attempt of each trial ended."""
    return [
        [attempt["how"] for attempt in files.read_jsonl(find_folder(runs, number).setbacks)] for number in range(count)
    ]


def list_starts(runs: Path, number: int) -> list[Event]:
    """The log's events that start a trial."""
    trial_id = find_folder(runs, number).path.name
    return [event for event in events_of(runs, "s") if event["event"] == "start" and event["trial_id"] == trial_id]


def list_pack_sizes(runs: Path) -> list[int]:
    """How many trials each worker was given at a time, as the log of one worker after another tells."""
    sizes, under_way = [], set()
    for event in events_of(runs, "s"):
        if event["event"] == "start":
            if not under_way:
                sizes.append(0)
            sizes[-1] += 1
            under_way.add(event["trial_id"])
        elif event["event"] in ("end", "apart", "death", "oom", "preempted"):
            under_way.discard(event["trial_id"])
        elif event["event"] == "begin":
            under_way.clear()
    return sizes


def read_saved_step(runs: Path, number: int) -> int:
    """The step of a trial's checkpoint; 0 without one."""
    path = find_folder(runs, number).checkpoints / "checkpoint-1" / "step"
    return int(path.read_text()) if path.exists() else 0
