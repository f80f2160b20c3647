"""Every file of a runs folder: its name, and how it is written and read.

    runs/
      trials/<trial id>/
        config.json              the trial's configuration
        losses.jsonl             one optimizer step a line: step, loss, learning_rate, grad_norm, epoch
        adapter/                 in PEFT's format
        result.json              written last: how the training ended, with the sha256 of the files above
        checkpoints/             of a training that is not complete
        setbacks.jsonl           failed attempts: a line for each death of the worker and each time memory ran out
        log.txt                  messages of the libraries and of the trial
        evals/<eval id>/
          generations.jsonl      one prompt a line: the prompt, the text that was written, the reference
          scores.json            the metrics of each prompt, and their means
          result.json            written last: how the evaluation ended, with the sha256 of the files above
      sweeps/<name>.json         the sweep's trials and its command
      sweeps/<name>/             events.jsonl, report.{md,csv,json,html}, report-texts/, votes*.json, worker-N.log;
                                 progress.json while the sweep runs
      quarantine/                trials with damaged files
      locks/                     one file for each lock that is held
      wandb/, mlflow.db, mlflow/, trackio/   mirrors of the results, which no code reads

A baseline is a trial without an adapter: its result.json is complete at once, and its numbers are in its evaluation.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from lora_sweep.runs.crash_points import crash_point

JsonObject: TypeAlias = dict[str, object]  # as json.loads reads it

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the disk is full, read-only or broken


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of ``path``. After a crash at any moment it is either the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            crash_point("written")
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        crash_point("before rename")
        os.replace(temporary, path)
        crash_point("renamed")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically. Raises ValueError for a NaN or an infinity: an unknown number is None."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object on each line, atomically."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines).encode())


def append_line(path: Path, value: Mapping[str, object]) -> None:
    """Append one JSON object as a line, and wait until it is on the disk.

    An unfinished line of a killed writer is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        crash_point("before append")
        data = b"\n" * is_torn + line
        while data:  # a disk that is nearly full takes only a part
            data = data[os.write(handle, data) :]
        crash_point("appended")
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``; None where the file is absent or does not hold a whole object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in ``path``, one on each line. Lines that are no whole object are skipped."""
    if not path.exists():
        return []
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.split("\n"):  # not splitlines(): it splits at U+2028 too, which can stand in a generated text
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of each file of ``names`` below ``folder``; a name of a folder stands for all of its files."""
    hashes = {}
    for name in names:
        path = folder / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as handle:
                hashes[str(file.relative_to(folder))] = hashlib.file_digest(handle, "sha256").hexdigest()
    return hashes


@dataclass(frozen=True)
class EvalFolder:
    """The folder of one evaluation of one adapter."""

    path: Path

    @property
    def generations(self) -> Path:
        return self.path / "generations.jsonl"

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def losses(self) -> Path:
        return self.path / "losses.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def setbacks(self) -> Path:
        return self.path / "setbacks.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def evaluation(self, eval_id: str) -> EvalFolder:
        return EvalFolder(self.path / "evals" / eval_id)


def trial_folder(runs: Path, trial_id: str) -> TrialFolder:
    return TrialFolder(runs / "trials" / trial_id)


def sweep_file(runs: Path, name: str) -> Path:
    return runs / "sweeps" / f"{name}.json"


def read_labels(runs: Path, name: str) -> list[str]:
    """The labels of a sweep's trials; empty where the sweep has no file. ``sweep.store.sweep_file`` reads the rest."""
    entries = (read_json(sweep_file(runs, name)) or {}).get("trials", [])
    return [str(entry["label"]) for entry in entries]


def report_folder(runs: Path, name: str) -> Path:
    return runs / "sweeps" / name


def events_file(runs: Path, name: str) -> Path:
    return report_folder(runs, name) / "events.jsonl"


def append_event(runs: Path, name: str, event: str, **more: object) -> None:
    """Append to the events.jsonl of a sweep. Several processes may do so at once."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    append_line(events_file(runs, name), {"time": time, "event": event, **more})


def progress_file(runs: Path, name: str) -> Path:
    return report_folder(runs, name) / "progress.json"


def trial_lock(runs: Path, trial_id: str) -> Path:
    return runs / "locks" / f"trial-{trial_id}"


def sweep_lock(runs: Path, name: str) -> Path:
    return runs / "locks" / f"sweep-{name}"


def quarantine_folder(runs: Path, path: Path, reason: str) -> Path:
    """Move the folder of a trial or of an evaluation to quarantine/, with the reason in a file beside it.

    Returns:
        Its new path.
    """
    quarantine = runs / "quarantine"
    quarantine.mkdir(parents=True, exist_ok=True)
    parts = path.relative_to(runs / "trials").parts
    name = "-".join(part for part in parts if part != "evals")
    number = 1
    while (quarantine / f"{name}-{number}").exists():
        number += 1
    target = quarantine / f"{name}-{number}"
    crash_point("before quarantine")
    os.replace(path, target)
    crash_point("quarantined")
    write_json(quarantine / f"{name}-{number}.json", {"from": "/".join(("trials", *parts)), "why": reason})
    return target


def remove_temporary_files(folder: Path) -> None:
    """Delete the temporary files of writers that were killed. The caller must hold the folder's lock."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
