"""MLflow: runs are in the file ``runs_dir/mlflow.db``, their tables and files below ``runs_dir/mlflow``.

The run of a sweep contains the runs of its trials. Imports mlflow only when it is used; mlflow-skinny with sqlalchemy
and alembic is enough to write. Methods may raise; ``run`` catches.
"""

import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Tracking
from lora_sweep.tracking.mirror import RunInfo, Values, Warn

# Names of tags of a run: ours, and the one that tells MLflow which run contains it.
RUN_ID, GROUP, JOB_TYPE, TAGS = "lora_sweep.run_id", "lora_sweep.sweep", "lora_sweep.kind", "lora_sweep.tags"
PARENT = "mlflow.parentRunId"

# MLflow's limits.
MAX_KEY_CHARACTERS = 250
MAX_VALUE_CHARACTERS = 6000
MAX_BATCH_PARAMS = 100


class MlflowRun:
    """A ``mirror.Mirror``."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._id = client, run_id
        self._tables: dict[str, dict[str, str]] = {}

    def log_point(self, point: dict[str, float], step: int) -> None:
        self._client.log_batch(self._id, make_metrics(point, step))

    def log_summary(self, values: Values) -> None:
        """Numbers become metrics, because MLflow can sort its table by metrics; texts become tags."""
        from mlflow.entities import RunTag

        numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
        texts = {key: str(value) for key, value in values.items() if value is not None and key not in numbers}
        tags = [RunTag(clean_name(key), text[:MAX_VALUE_CHARACTERS]) for key, text in texts.items()]
        self._client.log_batch(self._id, make_metrics(numbers, 0), tags=tags)

    def log_table(self, key: str, columns: list[str], rows: list[list[object]]) -> None:
        """A file in the format of ``mlflow.log_table``: MLflow shows the tables of several runs side by side.

        ``mlflow.log_table`` itself would import pandas, use functions that pandas 3 deprecates, and append the rows of
        a resumed sweep to its earlier rows.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        path = f"{clean_name(key)}.json"
        self._client.log_dict(self._id, {"columns": columns, "data": rows}, path)
        self._tables[path] = {"path": path, "type": "table"}
        self._client.set_tag(self._id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(list(self._tables.values())))

    def log_chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[object]]) -> None:
        """A table of the chart's numbers. MLflow cannot show the chart, but the report has it."""
        self.log_table(key, columns, rows)

    def log_files(self, name: str, paths: list[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._id, str(path), "report")

    def end_run(self, failure: str | None) -> None:
        self._client.set_terminated(self._id, "FAILED" if failure else "FINISHED")


def open_run(tracking: Tracking, runs_dir: Path, info: RunInfo, warn: Warn) -> MlflowRun:
    """A run of MLflow. An earlier run of the same trial is deleted; an earlier run of the sweep is continued."""
    with hold_database(runs_dir):
        client = make_client(runs_dir)
        experiment = find_experiment(client, tracking.project, runs_dir)
        run_id = parent = find_or_create_sweep(client, experiment, info.group)
        if info.job_type != "sweep":
            for earlier in find_runs(client, experiment, info.run_id):
                client.delete_run(earlier)
            run_id = create_run(client, experiment, info, {PARENT: parent, TAGS: ", ".join(info.tags)})
    log_params(client, run_id, info.config)
    return MlflowRun(client, run_id)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that shows the runs; None where there are none."""
    database = runs_dir / "mlflow.db"
    if not database.exists():
        return None
    line = f"to see the runs: mlflow ui --backend-store-uri {shlex.quote(write_address(database))}"
    if importlib.util.find_spec("flask") is None:  # mlflow-skinny can write runs but not show them
        from importlib.metadata import version

        line += f" (with mlflow=={version('mlflow-skinny')}, best in a separate environment)"
    return line


def make_client(runs_dir: Path) -> Any:
    """A client of this folder's database. MLflow is set to print nothing and to send no telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # mlflow set its own when it was imported
    return MlflowClient(tracking_uri=write_address(runs_dir / "mlflow.db"))


def find_experiment(client: Any, project: str, runs_dir: Path) -> str:
    """The id of the experiment with the project's name, which is made where it is missing.

    Raises:
        RuntimeError: the runs folder was moved. MLflow keeps absolute paths, and would write to the old folder.
    """
    experiment, folder = client.get_experiment_by_name(project), (runs_dir / "mlflow").resolve().as_uri()
    if experiment is None:
        return str(client.create_experiment(project, artifact_location=folder))
    if experiment.artifact_location != folder:
        raise RuntimeError(f"mlflow.db keeps its files in {experiment.artifact_location}: the runs folder was moved")
    return str(experiment.experiment_id)


def find_or_create_sweep(client: Any, experiment: str, sweep: str) -> str:
    """MLflow's id of the run of the sweep, which contains the runs of its trials. The first worker makes it."""
    info = RunInfo(sweep, f"sweep {sweep}", f"sweep-{sweep}", "sweep", config={}, tags=[])
    run_ids = find_runs(client, experiment, info.run_id)
    return run_ids[0] if run_ids else create_run(client, experiment, info, {})


def find_runs(client: Any, experiment: str, run_id: str) -> list[str]:
    """MLflow's ids of the runs with our ``run_id``."""
    quoted = run_id.replace("'", "")
    return [run.info.run_id for run in client.search_runs([experiment], f"tags.`{RUN_ID}` = '{quoted}'")]


def create_run(client: Any, experiment: str, info: RunInfo, tags: dict[str, str]) -> str:
    """A new run with our own tags and ``tags``; returns MLflow's id."""
    all_tags = {RUN_ID: info.run_id, GROUP: info.group, JOB_TYPE: info.job_type, **tags}
    return str(client.create_run(experiment, run_name=info.name, tags=all_tags).info.run_id)


def make_metrics(point: dict[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(clean_name(key), value, now, step) for key, value in point.items()]


def log_params(client: Any, run_id: str, config: Values) -> None:
    """Each leaf of the config as a parameter.

    MLflow lets no parameter change, so a resumed sweep keeps those of its first command.
    """
    from mlflow.entities import Param

    present = client.get_run(run_id).data.params
    leaves = {clean_name(key): str(value)[:MAX_VALUE_CHARACTERS] for key, value in flatten_tree(config).items()}
    params = [Param(key, value) for key, value in leaves.items() if key not in present]
    for start in range(0, len(params), MAX_BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + MAX_BATCH_PARAMS])


def flatten_tree(value: object, prefix: str = "") -> dict[str, object]:
    """A tree of dicts as {dotted path: leaf}."""
    if isinstance(value, dict) and value:
        return {path: leaf for key, sub in value.items() for path, leaf in flatten_tree(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def clean_name(key: str) -> str:
    """``key`` with ``_`` for each character that MLflow forbids in names of metrics, parameters, tags and files."""
    return re.sub(r"[^\w./: -]", "_", key, flags=re.ASCII)[:MAX_KEY_CHARACTERS].strip("/. ") or "_"


def write_address(database: Path) -> str:
    return f"sqlite:///{database.absolute()}"


@contextlib.contextmanager
def hold_database(runs_dir: Path) -> Iterator[None]:
    """Hold a lock on the database, so that workers that start together make its tables and the sweep's run once."""
    folder = runs_dir / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
