"""Trackio: runs are in files below ``runs_dir/trackio``; ``trackio show`` shows them. Nothing leaves the machine.

Imports trackio only when it is used. Methods may raise; ``run`` catches.
"""

import contextlib
import importlib
import io
import os
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Tracking
from lora_sweep.tracking.mirror import RunInfo, Values, Warn


class TrackioRun:
    """A ``mirror.Mirror``. Trackio has no summary: a run's final numbers become metrics of its last step."""

    def __init__(self, trackio: Any, run: Any) -> None:
        self._trackio, self._run = trackio, run
        self._step = 0

    def log_point(self, point: dict[str, float], step: int) -> None:
        self._run.log(point, step=step)
        self._step = max(self._step, step)

    def log_summary(self, values: Values) -> None:
        self._run.log({key: value for key, value in values.items() if value is not None}, step=self._step)

    def log_table(self, key: str, columns: list[str], rows: list[list[object]]) -> None:
        self._run.log({key: self._trackio.Table(columns=columns, data=rows)}, step=self._step)

    def log_chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[object]]) -> None:
        """A table of the chart's numbers. Trackio draws lines only, but the report has the chart."""
        self.log_table(key, columns, rows)

    def log_files(self, name: str, paths: list[Path]) -> None:
        """An artifact of type ``report``."""
        artifact = self._trackio.Artifact(name, type="report")
        for path in paths:
            artifact.add_file(path)
        self._run.log_artifact(artifact)

    def end_run(self, failure: str | None) -> None:
        with silence_trackio():
            if failure:
                self._run.alert(title=failure, level=self._trackio.AlertLevel.ERROR)
            self._run.finish()


def open_run(tracking: Tracking, runs_dir: Path, info: RunInfo, warn: Warn) -> TrackioRun:
    """A run of Trackio. An earlier run with the same ``run_id`` is deleted.

    ``trackio.init`` is not used: it would end the run that is open, send runs to a Space that the environment names,
    and print six lines.
    """
    trackio = import_trackio(runs_dir)
    for earlier in list_runs(trackio, tracking.project):
        if earlier.id == info.run_id:
            earlier.delete()
    trackio.sqlite_storage.SQLiteStorage.validate_project_name(tracking.project)

    class LocalRun(trackio.Run):  # type: ignore[misc, name-defined]
        def _get_username(self) -> None:
            """Return None. Trackio itself would ask the server of Hugging Face who is logged in."""

    filing = {"kind": info.job_type, "tags": ", ".join(info.tags), "run_id": info.run_id}
    run = LocalRun(
        url=None,
        project=tracking.project,
        client=None,
        name=info.name,
        run_id=info.run_id,
        group=info.group,
        config={**info.config, **filing},
        existing_runs=[],
        auto_log_gpu=True,  # only where there is one
    )
    return TrackioRun(trackio, run)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that shows the runs; None where there are none."""
    folder = runs_dir / "trackio"
    if not folder.is_dir():
        return None
    project = shlex.quote(tracking.project)
    return f"to see the runs: TRACKIO_DIR={shlex.quote(str(folder.absolute()))} trackio show --project {project}"


def import_trackio(runs_dir: Path) -> Any:
    """The module trackio, set to write to ``runs_dir``. It reads the path only once, when it is imported.

    Raises:
        RuntimeError: this process imported it for another runs folder.
    """
    folder = (runs_dir / "trackio").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRACKIO_DIR"] = str(folder)
    trackio = importlib.import_module("trackio")
    present: Path = trackio.TRACKIO_DIR
    if present != folder:
        raise RuntimeError(f"this process already writes Trackio's files to {present}")
    return trackio


def list_runs(trackio: Any, project: str) -> list[Any]:
    """Trackio's runs of the project; [] where it has no such project."""
    try:
        return list(trackio.Api().runs(project))
    except ValueError:  # no such project
        return []


@contextlib.contextmanager
def silence_trackio() -> Iterator[None]:
    """Hide the lines that Trackio prints when a run ends, and turn its warnings into a RuntimeError."""
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    if caught:
        raise RuntimeError(str(caught[0].message))
