"""Weights & Biases: opens runs that print nothing, send nothing private and cannot stop a trial.

All files are under ``runs_dir/wandb``. Imports wandb only when it is used. Methods may raise; ``run`` catches.
"""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lora_sweep.config.schema import Tracking
from lora_sweep.tracking.mirror import RunInfo, Values, Warn

Mode = Literal["online", "offline", "none"]

INIT_SECONDS = 20.0  # a reachable server answers in 1 to 3 s; wandb's own limit is 90
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk; wandb itself would wait without end
MAX_TAG_CHARACTERS = 64  # W&B's limit

_has_given_up = False  # going online failed in this process: its later runs do not wait for the same failure again
_open_ids: set[str] = set()  # of the runs that are open in this process


class WandbRun:
    """A ``mirror.Mirror``."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run, self._folder = run, folder

    def log_point(self, point: dict[str, float], step: int) -> None:
        self._run.log(point, step=step)

    def log_summary(self, values: Values) -> None:
        self._run.summary.update(values)

    def log_table(self, key: str, columns: list[str], rows: list[list[object]]) -> None:
        with keep_files_in(self._folder):
            self._run.log({key: import_wandb().Table(columns=columns, data=rows, allow_mixed_types=True)})

    def log_chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[object]]) -> None:
        """A custom chart, which W&B draws from a table that it keeps as ``<key>_table``."""
        wandb = import_wandb()
        draw = wandb.plot.scatter if kind == "scatter" else wandb.plot.bar
        with keep_files_in(self._folder):
            table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            self._run.log({key: draw(table, columns[0], columns[1], title=title)})

    def log_files(self, name: str, paths: list[Path]) -> None:
        """An artifact of type ``report``."""
        with keep_files_in(self._folder):
            artifact = import_wandb().Artifact(name, type="report")
            for path in paths:
                artifact.add_file(str(path), name=path.name)
            self._run.log_artifact(artifact)

    def end_run(self, failure: str | None) -> None:
        _open_ids.discard(self._run.id)
        self._run.finish(exit_code=1 if failure else 0)


def open_run(tracking: Tracking, runs_dir: Path, info: RunInfo, warn: Warn) -> WandbRun | None:
    """A run of W&B: online where that works, else offline; None where W&B itself is switched off.

    If W&B has a run with this ``run_id``, an online run continues it: steps that W&B has are not added twice. An
    offline run gets a second folder: ``wandb sync`` uploads all folders of an id in the order of their start, and later
    points replace earlier ones.
    """
    mode = choose_mode(tracking)
    if mode == "none":
        return None
    if tracking.mode == "online" and mode == "offline" and not _has_given_up:
        warn("not logged in (wandb login), so this run is kept offline", None)
    folder = make_folder(runs_dir)
    settings = {
        "entity": tracking.entity,
        "project": tracking.project,
        "dir": str(runs_dir.absolute()),
        "group": info.group,
        "name": info.name,
        "id": info.run_id,
        "job_type": info.job_type,
        "config": info.config,
        "tags": [tag[:MAX_TAG_CHARACTERS] for tag in info.tags if tag],
    }
    with keep_files_in(folder):
        run = start_run(settings, mode, warn)
    _open_ids.add(info.run_id)
    return WandbRun(run, folder)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that uploads the offline runs; None where there are none."""
    folder = runs_dir / "wandb"
    if choose_mode(tracking) != "offline" or not any(folder.glob("offline-run-*/*.wandb")):
        return None
    own_command = Path(sys.executable).with_name("wandb")
    wandb = "wandb" if shutil.which("wandb") == str(own_command) else f"{shlex.quote(sys.executable)} -m wandb"
    return f"offline. To upload: {wandb} sync {shlex.quote(str(folder))}"


def choose_mode(tracking: Tracking) -> Mode:
    """The mode of new runs: ``tracking.mode``, except that runs stay offline without a login.

    Looks for a login where wandb does (environment, netrc, settings); contacts no server and asks the user nothing.
    ``auto`` also follows ``WANDB_MODE`` and ``wandb offline``.
    """
    if tracking.mode == "offline" or _has_given_up:
        return "offline"
    try:
        import_wandb()
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        settings = wandb_setup.singleton().settings
        if tracking.mode == "auto" and settings.mode in ("disabled", "offline", "dryrun"):
            return "none" if settings.mode == "disabled" else "offline"
        login = wbauth.authenticate_session(
            host=settings.base_url, source="lora-sweep", prompt=False, update_session=False
        )
        return "offline" if login is None else "online"
    except Exception:  # noqa: BLE001 - a broken login counts as none; opening the run reports a broken wandb
        return "offline"


def import_wandb() -> Any:
    """The module wandb, set to print nothing and to send no error reports.

    An error report contains stack traces. If its server does not answer, the process takes 20 s longer to end.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def start_run(settings: Values, mode: Mode, warn: Warn) -> Any:
    """``wandb.init``, offline where online fails. Raises whatever wandb raises for an offline run."""
    global _has_given_up
    wandb = import_wandb()
    if mode == "online":
        try:
            return wandb.init(**settings, mode="online", resume="allow", settings=make_settings(wandb))
        except Exception as error:
            if _open_ids:
                raise  # wandb's service keeps the id as long as it runs, and the open runs need the service
            _has_given_up = True
            warn("going online failed, so runs are kept offline", error)
            with contextlib.suppress(SystemExit):  # wandb raises it when its service crashed
                wandb.teardown()
    # Without resume: `wandb sync` would add a second folder's points after the first's instead of over them.
    return wandb.init(**settings, mode="offline", settings=make_settings(wandb))


def make_settings(wandb: Any) -> Any:
    """The settings of every run. The first offline start then takes 0.6 s, each later one of the process 0.01 s."""
    return wandb.Settings(
        reinit="create_new",  # other runs of this process stay open
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        label_disable=True,  # would search the main module's docstring
        x_disable_meta=True,  # would store sys.argv, which may contain tokens; our provenance has what matters
        x_save_requirements=False,  # would store all packages; our provenance has those that matter
        use_dot_wandb=False,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        stop_fn=lambda: None,  # the page's stop button would interrupt this process, with all its trials
        # System metrics stay on: on a GPU people want them; they cost a process of 8 MB and below 1 % of a core.
    )


@contextlib.contextmanager
def keep_files_in(folder: Path) -> Iterator[None]:
    """Let wandb write to ``folder`` what it would write to the home folder: the log of its service, tables to upload.

    Changes the environment while the block runs.
    """
    before = dict(os.environ)
    added = {name: str(folder.absolute()) for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR") if name not in before}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        if "WANDB_SERVICE" not in before:  # a child process would inherit our service, which ends with this process
            os.environ.pop("WANDB_SERVICE", None)


def make_folder(runs_dir: Path) -> Path:
    """``runs_dir/wandb``, made where it is missing.

    Raises:
        OSError: it cannot be written to; wandb would write to the system's temporary folder instead.
    """
    folder = runs_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (runs_dir, folder):
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{path} is not writable")
    return folder
