"""Hydra's other launchers: the same store, the same results, and nothing done twice."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn
from support.scripted import plan_of

from lora_sweep.runs import files
from sweep.engines.hydra_jobs import HydraEngine
from sweep.engines.pending import PendingTrial

SMALL = ["model=tiny", "data=tiny", "train.max_steps=2", "eval.prompts=1", "eval.validation_rows=2"]
COMMAND = [
    sys.executable,
    "-m",
    "lora_sweep.train",
    *SMALL,
    "eval.max_new_tokens=2",
    "tracking=none",
    "sweep_name=small",
]


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *more], cwd=folder, capture_output=True, text=True, check=False)


def adapters(folder: Path) -> dict[str, str]:
    found = sorted((folder / "runs/trials").glob("*/adapter/adapter_model.safetensors"))
    return {path.parts[-3]: files.hash_files(path.parent, [path.name])[path.name] for path in found}


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_job_is_started_for_each_point_that_is_not_done_and_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "s", 4)
    done, pending, same, waits = plan.trials
    waits = dataclasses.replace(waits, baseline=pending.key)  # done itself, but its baseline is not
    points = [done.key, pending.key, waits.key, pending.key]
    overrides = {trial.key: [f"seed={number}"] for number, trial in enumerate(plan.trials)}
    plan = dataclasses.replace(plan, trials=[done, pending, same, waits], points=points, overrides=overrides)
    started: list[list[str]] = []

    def start_jobs(jobs: list[list[str]]) -> list[JobReturn]:
        started.extend(jobs)
        return [JobReturn(overrides=job) for job in jobs]

    engine = HydraEngine(start_jobs)
    engine.run(plan, [PendingTrial(pending)], tmp_path, "s")
    assert started == [["seed=1", "sweep_name=s"], ["seed=3", "sweep_name=s"]]
    assert [job.overrides for job in engine.returns] == started


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What our own launcher makes of two ranks."""
    folder = tmp_path_factory.mktemp("ours")
    done = run(folder, "lora.r=2,4")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (("basic", "2"), ("joblib", "2,4"), ("submitit_local", "2"))
    ],
)
def test_another_launcher_gives_the_same_results(launcher: str, ranks: str, ours: Path, tmp_path: Path) -> None:
    command, count = [f"hydra/launcher={launcher}", f"lora.r={ranks}"], len(ranks.split(","))
    done = run(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(adapters(tmp_path)) == count
    assert adapters(tmp_path).items() <= adapters(ours).items()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "nothing is written outside runs"
    events = files.read_jsonl(files.events_file(tmp_path / "runs", "small"))
    started = [event["trial_id"] for event in events if event["event"] == "start"]
    assert len(started) == len(set(started)) == count + 1, "a trial was done twice"
    before = snapshot(tmp_path)
    again = run(tmp_path, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"0 to run, {count + 1} done" in again.stdout
    assert snapshot(tmp_path) == before
    if launcher == "basic":
        wider = run(tmp_path, "hydra/launcher=basic", "lora.r=2,4")
        assert wider.returncode == 0, wider.stdout + wider.stderr
        assert "1 to run, 2 done" in wider.stdout
        before = snapshot(tmp_path)
        assert run(tmp_path, "lora.r=2,4").returncode == 0, "our own launcher finds what another one did"
        assert snapshot(tmp_path) == before
        assert adapters(tmp_path) == adapters(ours)


@pytest.mark.slow
def test_a_bad_point_and_a_failed_one_are_rows_and_exit_code_1(tmp_path: Path) -> None:
    done = run(tmp_path, "hydra/launcher=basic", "lora.r=2,65", "lora.targets=mlp", "train.learning_rate=1e30")
    assert done.returncode == 1, done.stdout + done.stderr
    report = (tmp_path / "runs/sweeps/small/report.csv").read_text()
    assert "diverged" in report
    assert "invalid" in report


def test_another_sweeper_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = run(
        tmp_path, "hydra/launcher=basic", "hydra/sweeper=basic", "hydra.sweep.dir=runs/hydra", "hydra.sweep.subdir=."
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.endswith("\nrefused: hydra/sweeper: trials are planned by our own sweeper; allowed: grid\n")
