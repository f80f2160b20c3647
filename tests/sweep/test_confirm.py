"""Confirming a ranking: the tied rows trained with more seeds, and the test split read once. Real tiny trainings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.report_files import write_sweep
from test_report_ranking import grid, seeded

from lora_sweep.errors import EXIT_REFUSED
from lora_sweep.runs.files import sweep_file, trial_folder, write_json
from sweep.confirm import find_missing_seeds, main
from sweep.report.analysis.analyse import analyse_sweep
from sweep.store.sweep_file import find_newest_sweep

SMALL = ["model=tiny", "data=tiny", "tracking=none", "sweep_name=s", "eval.prompts=4", "eval.max_new_tokens=8"]
SMALL += ["train.max_steps=2", "eval.validation_rows=4"]


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_tied_rows_get_more_seeds_and_the_chosen_one_is_scored_on_the_test_split_once(tmp_path: Path) -> None:
    done = run(tmp_path, "lora_sweep.train", "-m", *SMALL, "lora.r=2,4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "single seed: ranking not established" in done.stdout
    runs = tmp_path / "runs"
    before = analyse_sweep(runs, "s")
    assert len(before.ranking.tied) == 2  # two steps of a random model: nothing to tell them by

    done = run(tmp_path, "sweep.confirm", "--seeds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    after = analyse_sweep(runs, "s")
    assert [each.summary.seed for each in after.standings[1:]] == [[0, 1], [0, 1]]
    assert "single seed" not in done.stdout.split("s-test")[-1]
    assert after.test is not None
    assert after.test.mark == after.ranking.recommended.summary.mark  # type: ignore[union-attr]
    assert after.test.text in " ".join(done.stdout.split())
    assert json.loads((runs / "sweeps/s/report.json").read_text())["test"]["mark"] == after.test.mark
    prompts = {path.read_text() for path in runs.glob("trials/*/evals/*/generations.jsonl")}
    asked = {json.loads(line)["prompt_id"].split("-")[0] for text in prompts for line in text.splitlines()}
    assert asked == {"validation", "test", "fixed"}
    assert json.loads(sweep_file(runs, "s").read_text())["command"] == before.sweep.command  # which still goes on
    assert find_newest_sweep(runs) == "s"
    confirmed = [trial for trial in after.sweep.trials if "seed=1" in trial.overrides]
    assert len(confirmed) == 2

    files = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    again = run(tmp_path, "sweep.confirm", "s", "--seeds", "2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == files


def test_the_missing_seeds_are_the_smallest_that_a_tied_row_has_not(tmp_path: Path) -> None:
    analysis = grid(tmp_path, effect=6.0)
    missing = find_missing_seeds(analysis, 3)
    assert {configuration.summary.targets for configuration, _ in missing} == {"all_linear"}
    assert [seeds for _, seeds in missing] == [[1, 2]] * 4
    assert find_missing_seeds(analysis, 1) == []


def test_a_second_choice_is_not_scored_on_a_test_split_that_was_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = grid(tmp_path)
    other = analysis.rows.trials[3]
    entry = {"trial_id": other.trial_id, "eval_id": "e1", "kind": "trial", "label": other.label}
    write_sweep(tmp_path, "demo-test", [entry])
    path = sweep_file(tmp_path, "demo-test")
    write_json(path, {**json.loads(path.read_text()), "split": "test"})
    monkeypatch.setattr("sweep.confirm.find_missing_seeds", lambda analysis, seeds: [])
    assert main(["demo", "--runs", str(tmp_path)]) == EXIT_REFUSED
    said = capsys.readouterr().err
    assert f"the test split of sweep demo: was used to score row {other.mark} ({other.label}), and it may be" in said
    assert "used only once; the recommendation is now row 1 (r=8 attn 4bit)" in said


def test_a_seed_that_failed_is_trained_again_and_for_one_that_diverged_the_next(tmp_path: Path) -> None:
    seeded(tmp_path, noise=1.0)
    rows = json.loads(sweep_file(tmp_path, "demo").read_text())["trials"]
    for entry, status in ((rows[2], "failed"), (rows[5], "diverged")):
        path = trial_folder(tmp_path, entry["trial_id"]).result
        write_json(path, {**json.loads(path.read_text()), "status": status, "reason": "why"})
    assert [seeds for _, seeds in find_missing_seeds(analyse_sweep(tmp_path, "demo"), 3)] == [[1], [3]]


def test_what_cannot_be_confirmed_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", str(tmp_path)]) == EXIT_REFUSED
    assert "holds no sweep yet" in capsys.readouterr().err
    grid(tmp_path)
    assert main(["demo", "--runs", str(tmp_path), "--seeds", "1"]) == EXIT_REFUSED
    assert "must be at least 2" in capsys.readouterr().err
    for entry in json.loads(sweep_file(tmp_path, "demo").read_text())["trials"]:
        path = trial_folder(tmp_path, entry["trial_id"]).result
        write_json(path, {**json.loads(path.read_text()), "status": "failed"})
    assert main(["demo", "--runs", str(tmp_path)]) == EXIT_REFUSED
    assert "No trial is complete" in capsys.readouterr().err
    write_json(sweep_file(tmp_path, "demo-test"), {"name": "demo-test", "trials": []})
    assert main(["demo", "--runs", str(tmp_path)]) == EXIT_REFUSED
    assert "sweep demo-test: is another sweep" in capsys.readouterr().err
    write_json(sweep_file(tmp_path, "demo-test"), {"name": "demo-test", "split": "test", "trials": []})
    assert main(["demo-test", "--runs", str(tmp_path)]) == EXIT_REFUSED
    assert "holds another sweep's scores on the test split" in capsys.readouterr().err
