"""MLflow: runs in the file ``runs_dir/mlflow.db``, what they hold in files below ``runs_dir/mlflow``.

A sweep is a run, and its trials are runs nested in it. Imports mlflow only when it is used; mlflow-skinny with
sqlalchemy and alembic is enough to write. Methods may raise; ``tracking`` catches.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Tracking

RUN_ID, GROUP, JOB_TYPE, TAGS = "lora_sweep.run_id", "lora_sweep.sweep", "lora_sweep.kind", "lora_sweep.tags"
PARENT = "mlflow.parentRunId"
KEY_LIMIT, VALUE_LIMIT, BATCH = 250, 6000, 100  # MLflow's own: characters of a name and of a value, params at once


class MlflowRun:
    """A ``tracking.Mirror``."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._id = client, run_id
        self._tables: dict[str, dict[str, str]] = {}

    def log(self, point: dict[str, float], step: int) -> None:
        self._client.log_batch(self._id, metrics_of(point, step))

    def summarize(self, values: dict[str, Any]) -> None:
        """Numbers become metrics, by which MLflow's table sorts; words become tags."""
        from mlflow.entities import RunTag

        numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
        words = {key: value for key, value in values.items() if value is not None and key not in numbers}
        tags = [RunTag(name_of(key), str(value)[:VALUE_LIMIT]) for key, value in words.items()]
        self._client.log_batch(self._id, metrics_of(numbers, 0), tags=tags)

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A file as ``mlflow.log_table`` writes, which MLflow shows as a table, those of several runs side by side.

        Written without it: it would load pandas, use what pandas 3 deprecates, and add the rows of a sweep that goes
        on to those that are there.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        path = f"{name_of(key)}.json"
        self._client.log_dict(self._id, {"columns": columns, "data": rows}, path)
        self._tables[path] = {"path": path, "type": "table"}
        self._client.set_tag(self._id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(list(self._tables.values())))

    def chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """The numbers of a chart: MLflow draws its own, and the report has them all."""
        self.table(key, columns, rows)

    def files(self, name: str, paths: list[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._id, str(path), "report")

    def end(self, failed: str | None) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def open_run(
    tracking: Tracking,
    runs_dir: Path,
    *,
    group: str,
    name: str,
    run_id: str,
    job_type: str,
    config: dict[str, Any],
    tags: list[str],
    warn: Callable[[str, BaseException | None], None],
) -> MlflowRun:
    """A run of MLflow. A trial's of the same ``run_id`` that is there already is deleted; a sweep's goes on."""
    with one_at_a_time(runs_dir):
        client = client_of(runs_dir)
        experiment = experiment_of(client, tracking.project, runs_dir)
        ours = parent = sweep_run(client, experiment, group)
        if job_type != "sweep":
            for earlier in found(client, experiment, run_id):
                client.delete_run(earlier)
            ours = created(client, experiment, name, run_id, group, job_type, {PARENT: parent, TAGS: ", ".join(tags)})
    log_params(client, ours, config)
    return MlflowRun(client, ours)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that shows what was written; None when there is nothing to see."""
    database = runs_dir / "mlflow.db"
    if not database.exists():
        return None
    line = f"to look at it: mlflow ui --backend-store-uri {shlex.quote(address_of(database))}"
    if importlib.util.find_spec("flask") is None:  # mlflow-skinny writes, and shows nothing
        from importlib.metadata import version

        line += f" (with mlflow=={version('mlflow-skinny')}, best in an environment of its own)"
    return line


def client_of(runs_dir: Path) -> Any:
    """A client of this folder's file, told to print nothing and to send its makers nothing."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # mlflow set its own when it was imported
    return MlflowClient(tracking_uri=address_of(runs_dir / "mlflow.db"))


def experiment_of(client: Any, project: str, runs_dir: Path) -> str:
    """The id of the experiment that has the project's name, made if need be.

    Raises RuntimeError where the runs folder was moved: MLflow keeps absolute paths, and would write to the old place.
    """
    known, place = client.get_experiment_by_name(project), (runs_dir / "mlflow").resolve().as_uri()
    if known is None:
        return str(client.create_experiment(project, artifact_location=place))
    if known.artifact_location != place:
        raise RuntimeError(f"mlflow.db keeps its files in {known.artifact_location}: the runs folder was moved")
    return str(known.experiment_id)


def sweep_run(client: Any, experiment: str, sweep: str) -> str:
    """The run of the sweep, in which its trials are nested: made by whoever comes first."""
    run_id = f"sweep-{sweep}"
    known = found(client, experiment, run_id)
    return known[0] if known else created(client, experiment, f"sweep {sweep}", run_id, sweep, "sweep")


def found(client: Any, experiment: str, run_id: str) -> list[str]:
    """MLflow's ids of the runs that have our ``run_id``."""
    quoted = run_id.replace("'", "")
    return [run.info.run_id for run in client.search_runs([experiment], f"tags.`{RUN_ID}` = '{quoted}'")]


def created(
    client: Any, experiment: str, name: str, run_id: str, group: str, job_type: str, tags: dict[str, str] | None = None
) -> str:
    about = {RUN_ID: run_id, GROUP: group, JOB_TYPE: job_type, **(tags or {})}
    return str(client.create_run(experiment, run_name=name, tags=about).info.run_id)


def metrics_of(point: dict[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name_of(key), value, now, step) for key, value in point.items()]


def log_params(client: Any, run_id: str, config: dict[str, Any]) -> None:
    """The config, a parameter a leaf. MLflow lets none change: of a sweep that goes on, the first command stays."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    leaves = {name_of(key): str(value)[:VALUE_LIMIT] for key, value in flat(config).items()}
    params = [Param(key, value) for key, value in leaves.items() if key not in known]
    for start in range(0, len(params), BATCH):
        client.log_batch(run_id, params=params[start : start + BATCH])


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as {dotted path: leaf}."""
    if isinstance(value, dict) and value:
        return {path: leaf for key, sub in value.items() for path, leaf in flat(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def name_of(key: str) -> str:
    """``key`` in the letters that MLflow allows in the name of a metric, parameter, tag or file."""
    return re.sub(r"[^\w./: -]", "_", key, flags=re.ASCII)[:KEY_LIMIT].strip("/. ") or "_"


def address_of(database: Path) -> str:
    return f"sqlite:///{database.absolute()}"


@contextlib.contextmanager
def one_at_a_time(runs_dir: Path) -> Iterator[None]:
    """Workers that start together would each make the tables, the experiment and the sweep's run."""
    folder = runs_dir / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
