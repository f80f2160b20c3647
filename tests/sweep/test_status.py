"""A sweep seen from another terminal: what its files say, and that looking changes nothing."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.errors import EXIT_REFUSED
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import hold_lock
from sweep.report.__main__ import main as report
from sweep.status.__main__ import main
from sweep.status.progress import RunningTrial, SweepProgress

Json = dict[str, Any]
COMMAND = "python -m lora_sweep.train -m lora.r=8,16"


def sweep(runs: Path, statuses: list[str], name: str = "blog", **changes: Any) -> None:
    """A sweep of trials t0, t1, ... as the store and the workers write it; ``new`` has no files."""
    entries = []
    for number, status in enumerate(statuses):
        ids = {"trial_id": f"t{number}", "eval_id": "e", "kind": "trial"}
        entries.append({**ids, "label": f"r={number}", "baseline": None})
        folder = files.trial_folder(runs, ids["trial_id"])
        evaluation = folder.evaluation("e").result
        outcome = {**ids, "status": status, "reason": f"\nwhat {status} means\nand more"}
        if status in ("complete", "trained", "unreadable"):
            results.write_result(folder.result, {**ids, "status": "complete"})
        if status == "complete":
            results.write_result(evaluation, {**ids, "status": "complete"})
        elif status == "unreadable":
            results.write_result(evaluation, outcome)
            evaluation.write_bytes(evaluation.read_bytes()[:-9])
        elif status not in ("new", "trained"):
            results.write_result(folder.result, outcome)
    started = "2026-01-02T03:04:05.000000+00:00"
    content = {"name": name, "command": COMMAND, "started": started, "varied": [], "trials": entries}
    files.write_json(files.sweep_file(runs, name), {**content, **changes})


def progress(runs: Path, name: str = "blog", labels: tuple[str, ...] = ("r=1",), seconds_left: Any = 840.0) -> Path:
    """The orchestrator's progress.json."""
    rows = {
        place: RunningTrial(f"t{label[2:]}", label, "cuda:0", time.time() - 754, "training", 120, 300, 1.23456, 1234.5)
        for place, label in enumerate(labels)
    }
    progress = SweepProgress(name, 3, time.time(), {}, rows, seconds_left)
    files.write_json(files.progress_file(runs, name), progress.to_json())
    return files.progress_file(runs, name)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [line.rstrip() for line in out.splitlines()]


def file_contents(runs: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in runs.rglob("*")}


def test_a_sweep_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["complete", "new", "new"])
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        progress(tmp_path)
        before = file_contents(tmp_path)
        lines = shown(capsys, "--runs", tmp_path)
        assert file_contents(tmp_path) == before
    assert lines[0] == "sweep blog  1 of 3 done, 1 waiting   about 14 min left"
    assert re.fullmatch(r"r=1    cuda:0  training  120/300  1\.235  1,234  12:3\d", lines[2])
    assert re.fullmatch(rf"it runs: pid {os.getpid()} on \S+, since \S+; the rows are \d s old", lines[4])
    assert "\n".join(lines).isascii()
    assert COMMAND not in "\n".join(lines)


def test_a_sweep_that_stopped_says_how_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["complete", "preempted", "diverged", "trained", "unreadable", "new"])
    progress(tmp_path, labels=("r=5",))  # of an orchestrator that was killed
    before = file_contents(tmp_path)
    assert shown(capsys, "--runs", tmp_path, "blog") == [
        "sweep blog  1 of 6 done, 1 diverged, 1 preempted, 1 broken, 2 waiting",
        "",
        "it does not run; 4 of 6 are left. Go on with:",
        f"  {COMMAND}",
        "",
        "not complete:",
        "  r=1: preempted: what preempted means",
        "  r=2: diverged: what diverged means",
        "  r=4: broken: result.json is torn",
    ]
    assert file_contents(tmp_path) == before


def test_a_finished_sweep_needs_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["complete", "complete", "timeout"])
    lines = shown(capsys, "--runs", tmp_path, "blog")
    assert lines[0] == "sweep blog  2 of 3 done, 1 timeout"
    assert lines[2] == "it does not run; nothing is left to do"
    assert COMMAND not in "\n".join(lines)


def test_the_last_started_sweep_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["complete"], "old")
    sweep(tmp_path, ["new"], "young", started="2026-01-02T03:04:06.000000+00:00")
    assert shown(capsys, "--runs", tmp_path)[0].startswith("sweep young  ")


def test_an_empty_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, [])
    lines = shown(capsys, "--runs", tmp_path)
    assert lines == ["sweep blog  0 of 0 done", "", "it does not run; it has no trials"]


@pytest.mark.parametrize("name", ["blgo", "../blog", "/etc/passwd", "", "blog.json", "blog\x1b[2J", "young/../blog"])
def test_an_unknown_name_is_refused_in_the_words_of_the_report(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path / "runs", ["complete"])
    files.write_json(tmp_path / "runs" / "blog.json", {"trials": []})
    arguments = ["--runs", str(tmp_path / "runs"), name or "?"]
    assert main(arguments) == report(arguments) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    ours, theirs = err.splitlines()
    assert ours == theirs
    assert ours.startswith("sweep ")
    assert "\x1b" not in ours


@pytest.mark.parametrize("trials", [None, {}, [3], [{"trial_id": "../../etc", "eval_id": "e"}], [{"trial_id": "t0"}]])
def test_a_sweep_file_that_names_no_trials_is_refused(
    trials: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, ["complete"], trials=trials)
    assert main(["--runs", str(tmp_path)]) == EXIT_REFUSED
    assert capsys.readouterr().err.startswith("sweep 'blog': has a file that does not list a valid trial_id")


def test_without_any_sweep_the_command_that_makes_one_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", str(tmp_path / "runs")]) == EXIT_REFUSED
    assert "holds no sweep yet; this makes one: python -m" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_claim_that_cannot_be_asked_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["new"])
    files.sweep_lock(tmp_path, "blog").mkdir(parents=True)
    lines = shown(capsys, "--runs", tmp_path)
    assert lines[2] == "it is not known whether it runs (Is a directory); 1 of 1 are left. Go on with:"


# ---- the progress of a sweep that runs ----


def last_word(runs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    [line] = [line for line in shown(capsys, "--runs", runs) if line.startswith("it runs: ")]
    return line.partition("; ")[2]


def test_progress_that_is_old_is_called_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["new", "new"])
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        path = progress(tmp_path)
        then = time.time() - 600
        os.utime(path, (then, then))
        os.utime(files.sweep_lock(tmp_path, "blog"), (then - 1, then - 1))
        assert last_word(tmp_path, capsys) == "but it has reported nothing for 10 min"


def test_progress_of_a_run_before_this_one_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["new", "new"])
    path = progress(tmp_path)
    os.utime(path, (time.time() - 600,) * 2)
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        assert last_word(tmp_path, capsys) == "the list of running trials is not written yet"
        path.unlink()
        assert last_word(tmp_path, capsys) == "the list of running trials is not written yet"


@pytest.mark.parametrize("cut", [0, 1, 60, -2])
def test_torn_progress(cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["new", "new"])
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        path = progress(tmp_path)
        path.write_bytes(path.read_bytes()[:cut])
        assert last_word(tmp_path, capsys) == "the list of running trials cannot be read: progress.json is torn"


@pytest.mark.parametrize(
    "running",
    [
        3,
        {"a": 1},
        [3, None, {}, {"trial_id": "t0"}],
        [{"trial_id": "t0", "label": "r=0", "device": "cpu", "started": "yesterday"}],
        [{"trial_id": "t0", "label": ["r=0"], "device": "cpu", "started": 0}],
        [{"trial_id": "t0", "label": "r=0", "started": 0}],
    ],
)
def test_progress_of_another_shape(running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["new", "new"])
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        files.write_json(files.progress_file(tmp_path, "blog"), {"running": running, "seconds_left": "soon"})
        lines = shown(capsys, "--runs", tmp_path)
    assert lines[0] == "sweep blog  0 of 2 done, 2 waiting"


def test_odd_cells_of_a_row_do_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"trial_id": "t0", "label": "r=0", "device": "cpu", "started": 10**17, "phase": [1], "step": "x", "more": 1}
    sweep(tmp_path, ["new", "new"])
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        path = files.progress_file(tmp_path, "blog")
        files.write_json(path, {"running": [row], "seconds_left": 0})
        path.write_text(path.read_text().replace('"x"', "1" + "0" * 400))
        lines = shown(capsys, "--runs", tmp_path)
    assert lines[2].split() == ["r=0", "cpu", "[1]", "-", "-", "-", "0:00"]


def test_a_result_is_a_later_word_than_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that has ended since is not shown as running; one that failed before and runs again is."""
    sweep(tmp_path, ["complete", "preempted"])
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        progress(tmp_path, labels=("r=0", "r=1"))
        lines = shown(capsys, "--runs", tmp_path)
    assert lines[0] == "sweep blog  1 of 2 done   about 14 min left"
    assert [line.split()[0] for line in lines[1:3]] == ["trial", "r=1"]
    assert "not complete:" not in lines


# ---- what others wrote ----


def test_texts_do_nothing_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/red]\x1b[2J\x9b\u202e\nforged: complete"
    sweep(tmp_path, ["new"], command=hostile)
    path = files.sweep_file(tmp_path, "blog")
    content = json.loads(path.read_text())
    content["trials"][0]["label"] = hostile
    files.write_json(path, content)
    outcome = {"status": hostile, "reason": hostile}
    results.write_result(files.trial_folder(tmp_path, "t0").result, outcome)
    with hold_lock(files.sweep_lock(tmp_path, "blog")):
        files.write_json(
            files.progress_file(tmp_path, "blog"),
            {"running": [{"trial_id": "t1", "label": hostile, "device": hostile, "started": 0}]},
        )
        running = shown(capsys, "--runs", tmp_path)
    text = "\n".join([*running, *shown(capsys, "--runs", tmp_path)])
    assert "[red]x[/red]" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert not any(line.lstrip().startswith("forged") for line in text.splitlines())


def test_many_failures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["failed"] * 25)
    lines = shown(capsys, "--runs", tmp_path)
    assert sum(": failed: what failed means" in line for line in lines) == 20
    assert lines[-1] == "  and 5 more"


def test_a_long_reason_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["failed"])
    results.write_result(files.trial_folder(tmp_path, "t0").result, {"status": "failed", "reason": "y" * 10_000})
    assert shown(capsys, "--runs", tmp_path)[-1] == "  r=0: failed: " + "y" * 199 + "…"


@pytest.mark.parametrize("kind", ["folder", "not utf-8", "a list"])
def test_a_result_that_is_none(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["new", "complete"])
    path = files.trial_folder(tmp_path, "t0").result
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff" if kind == "not utf-8" else b"[]")
    lines = shown(capsys, "--runs", tmp_path)
    assert lines[0] == "sweep blog  1 of 2 done, 1 broken"
    assert lines[-1].startswith("  r=0: broken: result.json ")
