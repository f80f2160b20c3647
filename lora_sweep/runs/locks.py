"""Locks below runs/locks: only the process that holds the lock of a trial or of a sweep writes its files.

A worker holds the lock of each trial that it runs; an orchestrator holds the lock of its sweep. The operating system
keeps the lock's file locked (flock) for its holder and frees it when the holder dies. The file tells who the holder
is, and is removed when the lock is freed. A file that a killed holder left is not locked and does no harm.
"""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lora_sweep.runs.crash_points import crash_point
from lora_sweep.runs.files import read_json

# `is_locked` holds a free lock for an instant, and a holder may remove the file just before we lock it: try again.
RETRY_SECONDS = 0.02
POLL_SECONDS = 0.005


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Hold the lock at ``path`` until the block ends or the process dies. Never waits for another holder.

    Yields:
        Whether the lock could be taken.

    Raises:
        OSError: the file cannot be written, or its file system has no flock.
    """
    lock = FileLock(path, fallback_to_soft=False, on_acquired=write_holder)
    try:
        lock.acquire(timeout=RETRY_SECONDS, poll_interval=POLL_SECONDS)
    except Timeout:
        yield False
        return
    try:
        crash_point("lock written")
        yield True
    finally:
        crash_point("before unlock")
        path.unlink(missing_ok=True)  # while it is locked: FileLock never takes a file that has lost its name
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    try:
        with FileLock(path, fallback_to_soft=False).acquire(blocking=False):
            return False
    except Timeout:
        return True


def describe_holder(path: Path) -> str:
    """The holder of the lock in words, as in ``pid 12 on host, since 2026-01-02T03:04:05+00:00``."""
    with contextlib.suppress(OSError, KeyError):
        holder = read_json(path) or {}
        return f"pid {holder['pid']} on {holder['host']}, since {holder['started']}"
    return "another process"  # it has not written to the file yet, or has just removed it


def remove_stale_locks(folder: Path) -> None:
    """Remove the lock files of holders that were killed."""
    for path in folder.glob("*"):
        with hold_lock(path):
            pass


def write_holder(handle: int) -> None:
    """Write into a lock's file, open at ``handle``, that this process is its holder."""
    holder = {"pid": os.getpid(), "host": platform.node(), "started": datetime.now(UTC).isoformat("T", "seconds")}
    with contextlib.suppress(OSError):  # the disk is full: the lock holds without these words
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
