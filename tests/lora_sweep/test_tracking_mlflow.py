"""MLflow as a mirror, read back with its own client: a real sqlite file, trials nested in their sweep, quietly."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.config.schema import Config, Lora, Tracking
from lora_sweep.runs.files import report_folder
from lora_sweep.tracking import run as tracking
from lora_sweep.tracking.sweep_run import log_sweep

needs_mlflow = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mlflow", "sqlalchemy", "alembic")),
    reason="needs mlflow-skinny, sqlalchemy and alembic",
)
# mlflow 3.17 uses what SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
MLFLOW = Tracking(backend="mlflow", project="p")
HOSTILE = ["<script>alert(1)</script>", "half a pair: \ud83d", "\x1b[31mred\u202e", "long " * 5_000]


@pytest.fixture(autouse=True)
def told_as_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment is as before; what is written into the current folder would be seen in ``here``."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def open_run(runs: Path, run_id: str = "abc-def") -> tracking.Run:
    config = {**dataclasses.asdict(Config(lora=Lora(r=8))), "note": HOSTILE[3], "hub_token": "geheim"}
    return tracking.open_run(
        MLFLOW, runs, group="first", name="r=08 attn", run_id=run_id, job_type="trial", config=config, tags=["tiny"]
    )


def read(runs: Path) -> tuple[Any, dict[str, Any]]:
    """A client, and the runs that are there by their names."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
    return client, dict(zip(names, found, strict=True))


def table(runs: Path, run: Any, key: str) -> list[dict[str, Any]]:
    (path,) = (runs / "mlflow" / run.info.run_id).rglob(f"{key}.json")
    content = json.loads(path.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


@needs_mlflow
def test_trials_are_nested_in_their_sweep_and_what_is_made_again_replaces(tmp_path: Path, capfd: Any) -> None:
    runs = tmp_path / "runs"
    open_run(runs).log_step(1, {"loss": 9.0})  # killed here: its run stays open, and is then replaced
    run = open_run(runs)
    for step in (1, 2):
        run.log_step(step, {"loss": 3 / step, "grad_norm": None if step == 1 else float("inf")})
    rows = [{"prompt_id": f"validation-{i}", "text": text, "quality": None} for i, text in enumerate(HOSTILE)]
    run.finish({"quality": 41.5, "trainable_params": 896, "quality_ci_low": 30.0}, rows)
    failed = tracking.open_run(
        MLFLOW, runs, group="first", name="bad", run_id="bad", job_type="trial", config={}, tags=[]
    )
    failed.fail("diverged", HOSTILE[1])
    folder = report_folder(runs, "first")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("a page")
    charts = {"rows": [{"mark": "1", "label": "r=8", "quality": 41.5, "trainable_params": 896}]}
    for labels in (["a", "b"], ["a", "b", "c"]):
        table_rows = [{"label": label, "kind": "trial", "status": "complete", "quality": 5} for label in labels]
        log_sweep(MLFLOW, runs, name="first", command="c token=x", rows=table_rows, charts=charts)

    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert not list((tmp_path / "here").iterdir())
    client, found = read(runs)
    assert set(found) == {"r=08 attn", "bad", "sweep first"}
    trial, sweep = found["r=08 attn"], found["sweep first"]
    assert {found[name].data.tags["mlflow.parentRunId"] for name in ("r=08 attn", "bad")} == {sweep.info.run_id}
    assert (trial.info.status, found["bad"].info.status, sweep.info.status) == ("FINISHED", "FAILED", "FINISHED")
    losses = client.get_metric_history(trial.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 3.0), (2, 1.5)]
    assert (trial.data.metrics["quality"], trial.data.metrics["trainable_params"]) == (41.5, 896)
    assert (trial.data.metrics["quality_ci_low"], trial.data.tags["status"]) == (30, "complete")
    assert (trial.data.params["lora.r"], trial.data.params["lora.targets"]) == ("8", "attn")
    assert (trial.data.params["hub_token"], len(trial.data.params["note"])) == ("***", 6000)
    assert [row["text"] for row in table(runs, trial, "generations")] == [t.replace("\ud83d", "?") for t in HOSTILE]
    assert found["bad"].data.tags["reason"] == "half a pair: ?"
    assert [row["label"] for row in table(runs, sweep, "trials")] == ["a", "b", "c"]
    assert table(runs, sweep, "pareto_trainable_params")[0]["quality"] == 41.5
    assert (sweep.data.params["command"], sweep.data.metrics["best_quality"]) == ("c token=***", 5)
    assert (runs / "mlflow" / sweep.info.run_id / "artifacts/report/report.html").read_text() == "a page"
    line = tracking.closing_line(MLFLOW, runs)
    assert line is not None
    assert line.startswith(f"MLflow: to see the runs: mlflow ui --backend-store-uri sqlite:///{runs}/mlflow.db")

    moved = runs.rename(tmp_path / "moved")  # MLflow keeps absolute paths: nothing may go to the old place
    open_run(moved).finish({"quality": 2.0}, [{"text": "x"}])
    said = capfd.readouterr().out
    assert said.startswith("MLflow: the run 'r=08 attn' is not mirrored: RuntimeError: mlflow.db keeps its files in")
    assert said.count("\n") == 1
    assert not runs.exists()


@needs_mlflow
@pytest.mark.slow  # three imports of mlflow at once
def test_workers_that_start_together_make_one_sweep(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = (
        "import sys; from pathlib import Path; from lora_sweep.config import schema as config\n"
        "from lora_sweep.tracking import run as tracking\n"
        "run = tracking.open_run(config.Tracking(backend='mlflow', project='p'), Path(sys.argv[1]), group='first',\n"
        "                        name=sys.argv[2], run_id=sys.argv[2], job_type='trial', config={}, tags=[])\n"
        "for step in range(1, 30): run.log_step(step, {'loss': 1.0})\n"
        "run.finish({'quality': 1.0})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    commands = [[sys.executable, "-c", script, str(runs), f"trial-{number}"] for number in range(3)]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for command in commands]
    assert [worker.communicate(timeout=60)[0] for worker in workers] == [b"", b"", b""]
    client, found = read(runs)
    assert set(found) == {"sweep first", "trial-0", "trial-1", "trial-2"}
    for name in ("trial-0", "trial-1", "trial-2"):
        assert len(client.get_metric_history(found[name].info.run_id, "train/loss")) == 29


def test_names_that_mlflow_would_refuse_are_made_of_what_it_allows() -> None:
    from lora_sweep.tracking.mlflow import clean_name, flatten_tree

    assert [clean_name(key) for key in ("train/loss", "a=b<c>", "é" * 300, "../x", "")] == [
        "train/loss",
        "a_b_c_",
        "_" * 250,
        "x",
        "_",
    ]
    assert flatten_tree({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
