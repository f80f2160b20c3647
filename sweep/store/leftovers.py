"""The files that a killed orchestrator leaves behind: locks, half-written files and progress.json."""

from collections.abc import Iterator
from pathlib import Path

from lora_sweep.runs import files
from lora_sweep.runs.locks import remove_stale_locks


def has_leftovers(runs: Path, sweep: str) -> bool:
    """Whether a killed orchestrator of this sweep left a file behind."""
    locks = [*(runs / "locks").glob("*")]
    temporary = [*files.report_folder(runs, sweep).rglob(".*.tmp"), *list_temporary_sweep_files(runs, sweep)]
    return bool(locks or temporary) or files.progress_file(runs, sweep).exists()


def remove_temporary_files(runs: Path, sweep: str) -> None:
    """Remove the files that a killed orchestrator of this sweep left behind. The caller holds the sweep's lock."""
    remove_stale_locks(runs / "locks")
    files.remove_temporary_files(files.report_folder(runs, sweep))
    for path in list_temporary_sweep_files(runs, sweep):
        path.unlink(missing_ok=True)
    files.progress_file(runs, sweep).unlink(missing_ok=True)


def list_temporary_sweep_files(runs: Path, sweep: str) -> Iterator[Path]:
    """The half-written copies of the sweep's file."""
    return (runs / "sweeps").glob(f".{sweep}.json.*.tmp")
