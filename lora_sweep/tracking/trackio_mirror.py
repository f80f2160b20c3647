"""Trackio: runs in files below ``runs_dir/trackio``, looked at with ``trackio show``. Nothing leaves the machine.

Imports trackio only when it is used. Methods may raise; ``tracking`` catches.
"""

import contextlib
import importlib
import io
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Tracking


class TrackioRun:
    """A ``tracking.Mirror``. Trackio has no summary: the numbers of a run's end are metrics of its last step."""

    def __init__(self, trackio: Any, run: Any) -> None:
        self._trackio, self._run = trackio, run
        self._step = 0

    def log(self, point: dict[str, float], step: int) -> None:
        self._run.log(point, step=step)
        self._step = max(self._step, step)

    def summarize(self, values: dict[str, Any]) -> None:
        self._run.log({key: value for key, value in values.items() if value is not None}, step=self._step)

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        self._run.log({key: self._trackio.Table(columns=columns, data=rows)}, step=self._step)

    def chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """The numbers of a chart: Trackio draws lines only, and the report has the charts."""
        self.table(key, columns, rows)

    def files(self, name: str, paths: list[Path]) -> None:
        """An artifact of type ``report``."""
        artifact = self._trackio.Artifact(name, type="report")
        for path in paths:
            artifact.add_file(path)
        self._run.log_artifact(artifact)

    def end(self, failed: str | None) -> None:
        with quiet():
            if failed:
                self._run.alert(title=failed, level=self._trackio.AlertLevel.ERROR)
            self._run.finish()


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
) -> TrackioRun:
    """A run of Trackio. One of the same ``run_id`` that is there already is deleted: the later stands for both.

    Made without ``trackio.init``, which would end the run that is open, send it to a Space where the environment names
    one, and print six lines.
    """
    trackio = library(runs_dir)
    for earlier in known_runs(trackio, tracking.project):
        if earlier.id == run_id:
            earlier.delete()
    trackio.sqlite_storage.SQLiteStorage.validate_project_name(tracking.project)

    class LocalRun(trackio.Run):  # type: ignore[misc, name-defined]
        def _get_username(self) -> None:
            """Nobody: Trackio would ask Hugging Face's server who is logged in."""

    about = {"kind": job_type, "tags": ", ".join(tags), "run_id": run_id}
    run = LocalRun(
        url=None,
        project=tracking.project,
        client=None,
        name=name,
        run_id=run_id,
        group=group,
        config={**config, **about},
        existing_runs=[],
        auto_log_gpu=True,  # only where there is one
    )
    return TrackioRun(trackio, run)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that shows what was written; None when there is nothing to see."""
    folder = runs_dir / "trackio"
    if not folder.is_dir():
        return None
    project = shlex.quote(tracking.project)
    return f"to look at it: TRACKIO_DIR={shlex.quote(str(folder.absolute()))} trackio show --project {project}"


def library(runs_dir: Path) -> Any:
    """The module trackio, which keeps everything in one folder, fixed when it is imported."""
    folder = (runs_dir / "trackio").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRACKIO_DIR"] = str(folder)
    trackio = importlib.import_module("trackio")
    kept: Path = trackio.TRACKIO_DIR
    if kept != folder:
        raise RuntimeError(f"this process keeps Trackio's files in {kept}")
    return trackio


def known_runs(trackio: Any, project: str) -> list[Any]:
    try:
        return list(trackio.Api().runs(project))
    except ValueError:  # no such project yet
        return []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that Trackio prints when a run ends. Raises RuntimeError where it only warns."""
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    if said:
        raise RuntimeError(str(said[0].message))
