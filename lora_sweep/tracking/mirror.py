"""The types that ``run`` and the modules of the trackers share: ``Mirror`` is what a tracker's module implements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

Values: TypeAlias = Mapping[str, object]  # name -> number, text, or a list or dict of them
Warn: TypeAlias = Callable[[str, BaseException | None], None]  # prints one line: what happened, and the error behind it


@dataclass(frozen=True)
class RunInfo:
    """How a run is filed in a tracker.

    Attributes:
        group: the name of the sweep.
        run_id: runs with the same id are the same run: a trial that is trained again replaces its earlier run.
        job_type: ``trial``, ``baseline`` or ``sweep``.
    """

    group: str
    name: str
    run_id: str
    job_type: str
    config: Values
    tags: Sequence[str]


class Mirror(Protocol):
    """A run in one tracker. The values that it gets are clean (see ``values``); every method may raise."""

    def log_point(self, point: dict[str, float], step: int) -> None:
        """Add a point to each curve."""

    def log_summary(self, values: Values) -> None:
        """Set the run's final values."""

    def log_table(self, key: str, columns: list[str], rows: list[list[object]]) -> None: ...

    def log_chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[object]]) -> None:
        """Add a chart of the first two columns; ``kind`` is ``scatter`` or ``bar``."""

    def log_files(self, name: str, paths: list[Path]) -> None: ...

    def end_run(self, failure: str | None) -> None:
        """End the run. ``failure`` is the status and the reason of a run that failed, else None."""
