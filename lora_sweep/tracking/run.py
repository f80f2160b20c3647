"""A run in a tracker: each trial, each baseline and each sweep has one.

A tracker shows a copy of the results to people; no code reads it. An error of a tracker never ends a trial: it is
printed as one line, the run gets no further points, and the trial goes on. What differs between trackers is in
``wandb``, ``mlflow`` and ``trackio``. Each of these imports its library when it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from lora_sweep.config.schema import Tracking
from lora_sweep.errors import describe_error
from lora_sweep.tracking import mlflow, trackio, wandb
from lora_sweep.tracking.mirror import Mirror, RunInfo, Values
from lora_sweep.tracking.tables import Chart
from lora_sweep.tracking.values import clean_mapping, format_cell, replace_surrogates

BACKENDS: dict[str, ModuleType] = {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}
BACKEND_NAMES = {"wandb": "W&B", "mlflow": "MLflow", "trackio": "Trackio"}

# The columns that people read first stand first in every table.
FIRST_COLUMNS = (
    "label",
    "prompt_id",
    "product",
    "prompt",
    "text",
    "reference",
    "finished",
    "quality",
    "repetition_4gram",
)


class Run:
    """One run of a tracker. Without a mirror it does nothing. No method raises."""

    def __init__(self, mirror: Mirror | None, backend: str = "none") -> None:
        self._mirror, self._backend = mirror, backend
        self._has_warned = False

    def log_step(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve, as ``train/<name>``; a value of None adds none.

        Args:
            step: optimizer steps so far, from 1.
        """
        if not self._has_warned:
            point = {f"train/{key}": value for key, value in values.items() if value is not None}
            self._try(lambda mirror: mirror.log_point(point, step))

    def log_table(self, key: str, rows: Sequence[Values]) -> None:
        """Add a table of ``rows``, with every column that any of them has."""
        present = list(dict.fromkeys(column for row in rows for column in row))
        columns = [column for column in FIRST_COLUMNS if column in present]
        columns += [column for column in present if column not in columns]
        cells = [[format_cell(row.get(column)) for column in columns] for row in rows]
        self._try(lambda mirror: mirror.log_table(key, [replace_surrogates(column) for column in columns], cells))

    def log_chart(self, chart: Chart) -> None:
        cells = [[format_cell(value) for value in row] for row in chart.rows]
        columns = [replace_surrogates(column) for column in chart.columns]
        title = replace_surrogates(chart.title)
        self._try(lambda mirror: mirror.log_chart(chart.kind, chart.key, title, columns, cells))

    def log_files(self, name: str, paths: list[Path]) -> None:
        self._try(lambda mirror: mirror.log_files(name, paths))

    def finish(self, summary: Values, generations: Sequence[Values] | None = None) -> None:
        """End the run as finished.

        Args:
            summary: its final numbers.
            generations: rows of the table of written texts.
        """
        # Try each part even if an earlier one failed: the tracker shows a run that is not ended as running.
        self._log_summary({"status": "complete", "reason": None, **summary})
        if generations:
            self.log_table("generations", generations)
        self._end_run(None)

    def fail(self, status: str, reason: str) -> None:
        """End the run as failed, with the status and the reason in its summary."""
        self._log_summary({"status": status, "reason": reason})
        self._end_run(replace_surrogates(f"{status}: {reason}"))

    def _log_summary(self, summary: Values) -> None:
        self._try(lambda mirror: mirror.log_summary(clean_mapping(summary)))

    def _end_run(self, failure: str | None) -> None:
        self._try(lambda mirror: mirror.end_run(failure))
        self._mirror = None

    def _try(self, action: Callable[[Mirror], None]) -> None:
        if self._mirror is None:
            return
        try:
            action(self._mirror)
        except Exception as error:  # noqa: BLE001 - an error of a tracker must not end the trial
            if not self._has_warned:
                print_warning(self._backend, "a run is not mirrored completely", error)
            self._has_warned = True


def open_run(
    tracking: Tracking,
    runs_dir: Path,
    *,
    group: str,
    name: str,
    run_id: str,
    job_type: str,
    config: Values,
    tags: Sequence[str],
) -> Run:
    """A run of the tracker, or one that does nothing. Several may be open at once.

    Args:
        group, name, run_id, job_type, config, tags: see ``mirror.RunInfo``.
    """
    backend = BACKENDS.get(tracking.backend)
    if backend is None:
        return Run(None)
    info = RunInfo(
        group,
        replace_surrogates(name),
        run_id,
        job_type,
        clean_mapping(config),
        [replace_surrogates(tag) for tag in tags],
    )
    try:
        mirror = backend.open_run(tracking, runs_dir, info, partial(print_warning, tracking.backend))
    except Exception as error:  # noqa: BLE001 - an error of a tracker must not end the trial
        print_warning(tracking.backend, f"the run {name!r} is not mirrored", error)
        return Run(None)
    return Run(mirror, tracking.backend)


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The line that a sweep ends with: the command that uploads or shows its runs; None if there is nothing to show."""
    backend = BACKENDS.get(tracking.backend)
    try:
        line = backend.closing_line(tracking, runs_dir) if backend else None
    except Exception as error:  # noqa: BLE001 - an error of a tracker must not end the sweep
        line = f"cannot tell where its runs are: {describe_error(error)}"
    return f"{BACKEND_NAMES[tracking.backend]}: {line}" if line else None


def is_logged_in(tracking: Tracking) -> bool:
    """Whether runs go to W&B's server. Contacts no server and asks the user nothing."""
    return tracking.backend == "wandb" and wandb.choose_mode(tracking) == "online"


def print_warning(backend: str, text: str, error: BaseException | None = None) -> None:
    """Print one line for the person at the terminal."""
    print(f"{BACKEND_NAMES[backend]}: {text}" + (f": {describe_error(error)}" if error else ""), flush=True)
