"""Every file of a runs folder: its name, and how it is written and read."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_sweep.runs.crash_points import crash_point

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # no trial's fault


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a crash at any moment leaves the old file or the new one, whole."""
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
    """Write ``value`` atomically. Raises ValueError for a NaN or infinity: an unknown number is None."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines).encode())


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line, in one write, and keep it. What a killed writer left behind is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        crash_point("before append")
        data = b"\n" * torn + line
        while data:  # a disk that fills takes a part
            data = data[os.write(handle, data) :]
        crash_point("appended")
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at ``path``; None when there is none or it is not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects at ``path``, a line each; an absent file has none, and a torn line counts for none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split(
        "\n"
    ):  # not splitlines: U+2028 in a text is no end of a line
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of each file below ``folder`` that ``names`` gives; a folder's name stands for its files."""
    hashes = {}
    for name in names:
        path = folder / name
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as handle:
                hashes[str(file.relative_to(folder))] = hashlib.file_digest(handle, "sha256").hexdigest()
    return hashes


@dataclass(frozen=True)
class EvalFolder:
    """One evaluation of one adapter."""

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
    """One trial."""

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


def append_event(runs: Path, name: str, event: str, **more: Any) -> None:
    """Append to a sweep's log. Several processes may."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    append_line(events_file(runs, name), {"time": time, "event": event, **more})


def progress_file(runs: Path, name: str) -> Path:
    return report_folder(runs, name) / "progress.json"


def trial_lock(runs: Path, trial_id: str) -> Path:
    return runs / "locks" / f"trial-{trial_id}"


def sweep_lock(runs: Path, name: str) -> Path:
    return runs / "locks" / f"sweep-{name}"


def quarantine(runs: Path, path: Path, why: str) -> Path:
    """Move a trial's or an evaluation's folder aside, whole, with the reason beside it; returns its new place."""
    home = runs / "quarantine"
    home.mkdir(parents=True, exist_ok=True)
    parts = path.relative_to(runs / "trials").parts
    name = "-".join(part for part in parts if part != "evals")
    number = 1
    while (home / f"{name}-{number}").exists():
        number += 1
    target = home / f"{name}-{number}"
    crash_point("before quarantine")
    os.replace(path, target)
    crash_point("quarantined")
    write_json(home / f"{name}-{number}.json", {"from": "/".join(("trials", *parts)), "why": why})
    return target


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writers that were killed. Only for who holds the folder's claim."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
