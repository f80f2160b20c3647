"""Weights & Biases: how a run of it is opened, kept quiet, private and harmless, and what it is told.

Imports wandb only when it is used. Methods may raise; ``tracking`` catches. All files are under ``runs_dir/wandb``.
"""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from lora_sweep.config.schema import Tracking

Mode = Literal["online", "offline", "none"]

INIT_SECONDS = 20.0  # a reachable server answers in 1 to 3 s; wandb's own limit is 90
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk; wandb's own limit is none

_given_up = False  # going online failed in this process: its later runs do not wait for the same failure again
_open: set[str] = set()  # ids of the runs that are open in this process


class WandbRun:
    """A ``tracking.Mirror``."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run, self._folder = run, folder

    def log(self, point: dict[str, float], step: int) -> None:
        self._run.log(point, step=step)

    def summarize(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        with all_files_in(self._folder):
            self._run.log({key: quiet_wandb().Table(columns=columns, data=rows, allow_mixed_types=True)})

    def chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A custom chart, which W&B draws from a table that is kept beside it as ``<key>_table``."""
        wandb = quiet_wandb()
        draw = wandb.plot.scatter if kind == "scatter" else wandb.plot.bar
        with all_files_in(self._folder):
            table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            self._run.log({key: draw(table, columns[0], columns[1], title=title)})

    def files(self, name: str, paths: list[Path]) -> None:
        """An artifact of type ``report``."""
        with all_files_in(self._folder):
            artifact = quiet_wandb().Artifact(name, type="report")
            for path in paths:
                artifact.add_file(str(path), name=path.name)
            self._run.log_artifact(artifact)

    def end(self, failed: str | None) -> None:
        _open.discard(self._run.id)
        self._run.finish(exit_code=1 if failed else 0)


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
) -> WandbRun | None:
    """A run of W&B: online where that works, else offline; None where W&B itself is switched off.

    The same ``run_id`` again is the same run. Online it is resumed: steps that it has are not added twice. Offline a
    second folder appears; ``wandb sync`` uploads the folders of an id in the order of their start, the later over the
    earlier.
    """
    mode = effective_mode(tracking)
    if mode == "none":
        return None
    if tracking.mode == "online" and mode == "offline" and not _given_up:
        warn("not logged in (wandb login), so this run is kept offline", None)
    folder = writable_folder(runs_dir)
    settings = {
        "entity": tracking.entity,
        "project": tracking.project,
        "dir": str(runs_dir.absolute()),
        "group": group,
        "name": name,
        "id": run_id,
        "job_type": job_type,
        "config": config,
        "tags": [tag[:64] for tag in tags if tag],  # W&B's limit
    }
    with all_files_in(folder):
        run = start(settings, mode, warn)
    _open.add(run_id)
    return WandbRun(run, folder)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that uploads what was written offline; None when there is nothing to upload."""
    folder = runs_dir / "wandb"
    if effective_mode(tracking) != "offline" or not any(folder.glob("offline-run-*/*.wandb")):
        return None
    ours = Path(sys.executable).with_name("wandb")
    wandb = "wandb" if shutil.which("wandb") == str(ours) else f"{shlex.quote(sys.executable)} -m wandb"
    return f"offline. To upload: {wandb} sync {shlex.quote(str(folder))}"


def effective_mode(tracking: Tracking) -> Mode:
    """Where runs go. Looks for a login where wandb does (environment, netrc, settings); asks no server and no person.

    ``auto`` also follows ``WANDB_MODE`` and ``wandb offline``.
    """
    if tracking.mode == "offline" or _given_up:
        return "offline"
    try:
        quiet_wandb()
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        settings = wandb_setup.singleton().settings
        if tracking.mode == "auto" and settings.mode in ("disabled", "offline", "dryrun"):
            return "none" if settings.mode == "disabled" else "offline"
        login = wbauth.authenticate_session(
            host=settings.base_url, source="lora-sweep", prompt=False, update_session=False
        )
        return "offline" if login is None else "online"
    except Exception:  # noqa: BLE001 - a broken login is none; a broken wandb is said when the run is opened
        return "offline"


def quiet_wandb() -> Any:
    """The module wandb, told to print nothing and to send its makers no reports of errors.

    Those reports carry stack traces, and where the server does not answer they hold up the process's end for 20 s.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def start(settings: dict[str, Any], mode: Mode, warn: Callable[[str, BaseException | None], None]) -> Any:
    """``wandb.init``, offline where online fails. Raises whatever wandb raises for an offline run."""
    global _given_up
    wandb = quiet_wandb()
    if mode == "online":
        try:
            return wandb.init(**settings, mode="online", resume="allow", settings=common_settings(wandb))
        except Exception as error:
            if _open:
                raise  # the id stays taken in wandb's service, which cannot be ended under the runs that are open
            _given_up = True
            warn("going online failed, so runs are kept offline", error)
            with contextlib.suppress(SystemExit):  # its way to say that its service crashed
                wandb.teardown()
    # Without resume: `wandb sync` would add a second folder's points after the first's instead of over them.
    return wandb.init(**settings, mode="offline", settings=common_settings(wandb))


def common_settings(wandb: Any) -> Any:
    """What every run has in common. An offline start then takes 0.6 s, the next ones of the process 0.01 s."""
    return wandb.Settings(
        reinit="create_new",  # other runs of this process stay open
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        label_disable=True,  # would search the main module's docstring
        x_disable_meta=True,  # holds sys.argv, so the tokens in it; what matters is in our provenance
        x_save_requirements=False,  # all packages; those that matter are in our provenance too
        use_dot_wandb=False,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        stop_fn=lambda: None,  # the page's stop button would interrupt this process, with all its trials
        # System metrics stay on: on a GPU people want them; they cost a process of 8 MB and below 1 % of a core.
    )


@contextlib.contextmanager
def all_files_in(folder: Path) -> Iterator[None]:
    """Have wandb keep in ``folder`` what it would keep in the home directory: its service's log, tables to upload."""
    theirs = dict(os.environ)
    ours = {name: str(folder.absolute()) for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR") if name not in theirs}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        if "WANDB_SERVICE" not in theirs:  # a child process would inherit our service, and lose it with us
            os.environ.pop("WANDB_SERVICE", None)


def writable_folder(runs_dir: Path) -> Path:
    """``runs_dir/wandb``, made if need be. Raises OSError where wandb would write to the temporary folder instead."""
    folder = runs_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (runs_dir, folder):
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{path} is not writable")
    return folder
