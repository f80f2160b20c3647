"""A runs folder of earlier code: the present code takes its trials for complete, and the same command starts nothing.

``support/kept_runs`` was made by the code of commit 29f3064, with the command that its sweep's file holds. A change
that makes other numbers on purpose raises RECIPE_VERSION or SCORER_VERSION, and makes the folder again.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = Path(__file__).parents[1] / "support" / "kept_runs"


def file_times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def second_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder after the same command ran there once more, and what it printed."""
    home = tmp_path_factory.mktemp("kept")
    shutil.copytree(KEPT, home / "runs")
    words = shlex.split(json.loads((KEPT / "sweeps/kept.json").read_text())["command"])
    done = subprocess.run([sys.executable, *words[1:]], cwd=home, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "runs", done.stdout


def test_the_same_command_finds_every_trial_of_earlier_code_complete(second_run: tuple[Path, str]) -> None:
    assert "4 trials and 2 baselines" in second_run[1]
    assert "6 complete" in second_run[1]


def test_the_same_command_starts_nothing_and_touches_no_trial(second_run: tuple[Path, str]) -> None:
    runs, _ = second_run
    assert file_times(runs / "trials") == file_times(KEPT / "trials")  # copytree keeps the times
    assert (runs / "sweeps/kept/events.jsonl").read_bytes() == (KEPT / "sweeps/kept/events.jsonl").read_bytes()
