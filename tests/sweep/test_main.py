"""``python -m sweep``: it lists every command, and every sweep with its best row, whatever the files hold."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import run_command
from support.report_files import build

from lora_sweep.errors import EXIT_REFUSED
from lora_sweep.runs import files
from sweep import __main__ as command
from sweep.report.write import write_report

ROOT = Path(__file__).parents[2]


def list_lines(capsys: pytest.CaptureFixture[str], runs: Path) -> list[str]:
    """The lines below ``Sweeps in ...``, without the header of the table."""
    assert command.main(["--runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[lines.index(f"Sweeps in {runs}:") + 2 :]


def test_every_command_is_listed() -> None:
    packages = {f"sweep.{path.parent.name}" for path in (ROOT / "sweep").glob("*/__main__.py")}
    modules = {f"sweep.{path.stem}" for path in (ROOT / "sweep").glob("*.py") if "__main__" not in path.stem}
    runnable = {name for name in modules if "__main__" in (ROOT / f"{name.replace('.', '/')}.py").read_text()}
    assert {"lora_sweep.train"} | packages | runnable == set(command.COMMANDS)


def test_without_sweeps_it_says_so(tmp_path: Path) -> None:
    """As a process, which loads no torch: it ends within the time that torch alone takes to load."""
    code = (
        "import sys; from sweep.__main__ import main; code = main([]); "
        "assert not {'torch', 'pandas', 'scipy', 'wandb'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=None, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "Commands; each has --help:"
    assert done.stdout.splitlines()[-1] == "No sweeps in runs."
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_a_line_with_its_recommended_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path)
    (without_report,) = list_lines(capsys, tmp_path)
    write_report(tmp_path, "demo")
    report = json.loads((files.report_folder(tmp_path, "demo") / "report.json").read_text())
    best = max(
        (row for row in report["rows"] if row["status"] == "complete" and row["kind"] == "trial"),
        key=lambda row: row["quality"],
    )
    cells = re.split("  +", without_report)
    assert cells[:2] == ["demo", "2026-01-02 03:04"]
    assert cells[-2:] == [best["label"], f"{best['quality']:.1f}"]
    recommended = next(row for row in report["rows"] if row["mark"] == report["recommended"])
    (line,) = list_lines(capsys, tmp_path)
    assert re.split("  +", line)[-2:] == [recommended["label"], f"{recommended['quality']:.1f}"]
    statuses = [row["status"] for row in report["rows"]]
    assert f"{statuses.count('complete')} complete" in line


def test_the_newest_sweep_is_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, started in (("a", "2026-01-02T03:04:05+00:00"), ("b", "2026-01-02T05:04:05+01:00"), ("c", "")):
        files.write_json(files.sweep_file(tmp_path, name), {"name": name, "started": started, "trials": []})
    lines = [line.split() for line in list_lines(capsys, tmp_path)]
    assert lines == [
        ["b", "2026-01-02", "04:04", "none", "-", "-"],
        ["a", "2026-01-02", "03:04", "none", "-", "-"],
        ["c", "-", "none", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"name": "s", "tri', "its file is torn"),
        (b"\xff\xfe", "its file is torn"),
        (b"[]", "its file is torn"),
        (b'{"trials": [{"trial_id": "../../etc", "eval_id": "e"}]}', "sweep 's': has a file that does not list"),
        (b'{"trials": [{"trial_id": "t", "eval_id": "e", "label": "\\u001b[2J\\nx"}]}', "1 waiting"),
        (None, "its file cannot be read"),
    ],
)
def test_a_file_that_is_broken_or_foreign_is_one_line(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write_json(files.sweep_file(tmp_path, "whole"), {"name": "whole", "trials": []})
    path = files.sweep_file(tmp_path, "s")
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    lines = list_lines(capsys, tmp_path)
    assert len(lines) == 2
    (line,) = [line for line in lines if line.split()[0] == "s"]
    assert words in line
    assert "\x1b" not in line


@pytest.mark.parametrize("report", [b"{", b"[]", b'{"rows": 3, "recommended": "1"}', b'{"rows": [3, {}]}'])
def test_a_report_that_is_broken_is_passed_over(
    report: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path)
    (before,) = list_lines(capsys, tmp_path)
    files.report_folder(tmp_path, "demo").mkdir(parents=True, exist_ok=True)
    (files.report_folder(tmp_path, "demo") / "report.json").write_bytes(report)
    assert list_lines(capsys, tmp_path) == [before]


def test_a_hundred_sweeps_take_little_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path)
    path = files.sweep_file(tmp_path, "demo")
    for number in range(99):
        files.sweep_file(tmp_path, f"copy{number}").write_bytes(path.read_bytes())
    started = time.process_time()
    assert len(list_lines(capsys, tmp_path)) == 100
    assert time.process_time() - started < 10


def test_the_help_of_training_starts_with_what_one_types(tmp_path: Path) -> None:
    command_line = [sys.executable, "-m", "lora_sweep.train", "--help"]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == "Type, for example:"
    assert all(line.startswith("  python -m ") for line in lines[:6])
    assert lines[6] == ""
    assert "experiment: databricks_table" in done.stdout
    assert "\nlora:\n  r: 8\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- the console script ------------------------------------------------------------------------------------------


@pytest.fixture
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("same_path")
def test_a_first_word_that_names_a_command_runs_it(tmp_path: Path) -> None:
    words = ("plan", "model=tiny", "data=tiny", "sweep_name=short")
    finished = run_command("sweep.__main__", *words, folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("sweep short: 1 trial and 1 baseline of tiny")
    assert run_command("sweep.__main__", "train", "lora.rr=8", folder=tmp_path).returncode == EXIT_REFUSED


@pytest.mark.usefixtures("same_path")
def test_a_scorer_in_the_working_folder_is_found_and_a_file_called_sweep_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "own_judge.py").write_text("def score(text, reference, product, category):\n    return 1.0\n")
    (tmp_path / "sweep.py").write_text("raise SystemExit('the wrong file')\n")
    words = ("plan", "model=tiny", "data=tiny", "eval.scorer=own_judge:score")
    finished = run_command("sweep.__main__", *words, folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert sys.path[-1] == str(tmp_path)
