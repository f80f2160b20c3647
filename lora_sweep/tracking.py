"""Weights & Biases as a mirror: a run a trial, a run a baseline, a run a sweep. Nothing is ever read from it.

Owns everything that is said to W&B and how it is kept quiet, private and harmless. Knows no torch and no metric, and
imports wandb only when it is used. Whatever goes wrong in W&B becomes one printed line; the run is then not mirrored
further, and the trial goes on. All files are under ``runs_dir/wandb``.
"""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lora_sweep.config import Tracking

Mode = Literal["online", "offline", "none"]

INIT_SECONDS = 20.0  # a reachable server answers in 1 to 3 s; wandb's own limit is 90
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk; wandb's own limit is none

# Columns of tables that people read first.
FIRST = ("label", "prompt_id", "product", "prompt", "text", "reference", "finished", "quality", "repetition_4gram")
SECRET = r"(?:token|secret|password|api_?key)"

_given_up = False  # going online failed in this process: its later runs do not wait for the same failure again
_open: set[str] = set()  # ids of the runs that are open in this process


class Run:
    """One run of W&B, or, made with None, nothing at all. No method raises."""

    def __init__(self, run: Any | None, folder: Path = Path()) -> None:
        self._run = run
        self._folder = folder
        self._warned = False

    def log_step(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve, as ``train/<name>``; None is none. ``step`` counts optimizer steps, from 1."""
        if not self._warned:
            point = {f"train/{key}": value for key, value in values.items() if value is not None}
            self._attempt(lambda run: run.log(point, step=step))

    def finish(self, summary: dict[str, Any], generations: list[dict[str, Any]] | None = None) -> None:
        """End the run as finished, with numbers as its summary and, when given, a table of what it wrote."""
        self._end({"status": "complete", "reason": None, **summary}, "generations", generations, 0)

    def fail(self, status: str, reason: str) -> None:
        """End the run as failed; its summary says how and why."""
        self._end({"status": status, "reason": reason}, "", None, 1)

    def _end(self, summary: dict[str, Any], key: str, rows: list[dict[str, Any]] | None, exit_code: int) -> None:
        # Each of the three is tried whatever became of the others: a run left open would be reported as running.
        self._attempt(lambda run: run.summary.update(plain(summary)))
        if rows:
            self._attempt(lambda run: log_table(run, key, rows, self._folder))
        self._attempt(lambda run: run.finish(exit_code=exit_code))
        if self._run is not None:
            _open.discard(self._run.id)
        self._run = None

    def _attempt(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - a mirror's fault is no fault of the trial
            if not self._warned:
                warn(f"a run is not mirrored completely: {brief(error)}")
            self._warned = True


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
) -> Run:
    """A run of W&B: online where that works, else offline, else one that does nothing. Several may be open at once.

    The same ``run_id`` again is the same run. Online it is resumed: steps that it has are not added twice. Offline a
    second folder appears; ``wandb sync`` uploads the folders of an id in the order of their start, the later over the
    earlier.
    """
    mode = effective_mode(tracking)
    if mode == "none":
        return Run(None)
    if tracking.mode == "online" and mode == "offline" and not _given_up:
        warn("not logged in (wandb login), so this run is kept offline")
    try:
        folder = writable_folder(runs_dir)
        settings = {
            "entity": tracking.entity,
            "project": tracking.project,
            "dir": str(runs_dir.absolute()),
            "group": group,
            "name": name,
            "id": run_id,
            "job_type": job_type,
            "config": plain(config),
            "tags": [tag[:64] for tag in tags if tag],  # W&B's limit
        }
        with all_files_in(folder):
            run = start(settings, mode)
        _open.add(run_id)
        return Run(run, folder)
    except Exception as error:  # noqa: BLE001 - a mirror's fault is no fault of the trial
        warn(f"the run {name!r} is not mirrored: {brief(error)}")
        return Run(None)


def log_sweep(tracking: Tracking, runs_dir: Path, *, name: str, command: str, rows: list[dict[str, Any]]) -> None:
    """The sweep's own run: its rows as a table, and what is best in them as its summary.

    ``rows`` are those of report.csv: ``kind``, ``status``, ``quality``, ``label`` and ``drift`` are looked at.
    """
    complete = [row for row in rows if row.get("status") == "complete"]
    ranked = [row for row in complete if isinstance(row.get("quality"), int | float)]
    ranked = [row for row in ranked if not {"model", "data"} & set(row.get("drift") or ())]  # made from something else
    summary: dict[str, Any] = {"trials": len(rows), "complete": len(complete)}
    for kind, key in (("trial", "best"), ("baseline", "baseline")):
        best = max((row for row in ranked if row.get("kind") == kind), key=lambda row: row["quality"], default=None)
        if best is not None:
            summary |= {f"{key}_quality": best["quality"], f"{key}_label": best.get("label")}
    run = open_run(
        tracking,
        runs_dir,
        group=name,
        name=f"sweep {name}",
        run_id=f"sweep-{name}",
        job_type="sweep",
        config={"sweep": name, "command": re.sub(rf"(?i)({SECRET}=)\S+", r"\1***", command)},
        tags=["sweep"],
    )
    run._end({"status": "complete", "reason": None, **summary}, "trials", rows, 0)


def sync_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that uploads what was written offline; None when there is nothing to upload."""
    folder = runs_dir / "wandb"
    if effective_mode(tracking) != "offline" or not any(folder.glob("offline-run-*/*.wandb")):
        return None
    ours = Path(sys.executable).with_name("wandb")
    wandb = "wandb" if shutil.which("wandb") == str(ours) else f"{shlex.quote(sys.executable)} -m wandb"
    return f"{wandb} sync {shlex.quote(str(folder))}"


def effective_mode(tracking: Tracking) -> Mode:
    """Where runs go. Looks for a login where wandb does (environment, netrc, settings); asks no server and no person.

    ``auto`` also follows ``WANDB_MODE`` and ``wandb offline``.
    """
    if tracking.backend == "none":
        return "none"
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


# --- W&B itself ------------------------------------------------------------------------------------------------


def quiet_wandb() -> Any:
    """The module wandb, told to print nothing and to send its makers no reports of errors.

    Those reports carry stack traces, and where the server does not answer they hold up the process's end for 20 s.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def start(settings: dict[str, Any], mode: Mode) -> Any:
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
            warn(f"going online failed, so runs are kept offline: {brief(error)}")
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


def log_table(run: Any, key: str, rows: list[dict[str, Any]], folder: Path) -> None:
    """Log ``rows`` as a table with the columns of all of them, those of FIRST in front."""
    present = list(dict.fromkeys(column for row in rows for column in row))
    columns = [column for column in FIRST if column in present]
    columns += [column for column in present if column not in columns]
    data = [[cell(row.get(column)) for column in columns] for row in rows]
    with all_files_in(folder):
        run.log({key: quiet_wandb().Table(columns=columns, data=data, allow_mixed_types=True)})


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


# --- values ----------------------------------------------------------------------------------------------------


def plain(value: Any, key: str = "") -> Any:
    """``value`` as W&B takes it: valid Unicode, keys that are text, and no secret under a key named like one."""
    if isinstance(value, dict):
        return {str(name): plain(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, str):
        return "***" if re.search(rf"(?i){SECRET}$", key) else valid(value)
    return value if value is None or isinstance(value, bool | int | float) else valid(str(value))


def cell(value: Any) -> Any:
    """``value`` as a table's cell: a list becomes words with commas, and a number that is not finite is unknown."""
    if isinstance(value, list | tuple):
        return valid(", ".join(str(item) for item in value))
    if isinstance(value, dict):
        return valid(json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return plain(value)


def valid(text: str) -> str:
    """``text`` with lone surrogates, which no UTF-8 file can hold, replaced by question marks."""
    return text.encode("utf-8", "replace").decode()


def writable_folder(runs_dir: Path) -> Path:
    """``runs_dir/wandb``, made if need be. Raises OSError where wandb would write to the temporary folder instead."""
    folder = runs_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (runs_dir, folder):
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{path} is not writable")
    return folder


def brief(error: BaseException) -> str:
    """The first line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def warn(text: str) -> None:
    """One line for the person at the terminal."""
    print(f"W&B: {text}", flush=True)
