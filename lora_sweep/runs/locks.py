"""Claims: who may write. A claim is a locked file below runs/locks; the system frees it when its holder dies.

Trials are claimed by the worker that writes them, sweeps by their orchestrator. The file is gone with the claim.
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_sweep.runs.crash_points import crash_point


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether ``path`` could be claimed; held until the block ends, or its process does. Never waits.

    flock(2) is on the open file, so a file that its holder removed between our open and our lock is no claim: the
    path must still lead to the file that was locked.
    """
    handle = _locked(path)
    if handle is None:
        yield False
        return
    try:
        about = {"pid": os.getpid(), "host": platform.node(), "started": datetime.now(UTC).isoformat("T", "seconds")}
        with contextlib.suppress(OSError):  # on a full disk: the lock is the claim, and this only tells of it
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(about).encode(), 0)
        crash_point("claim written")
        yield True
    finally:
        crash_point("before claim is freed")
        path.unlink(missing_ok=True)  # before it is unlocked: who locks a removed file sees that it is removed
        os.close(handle)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # where it was the last


def is_claimed(path: Path) -> bool:
    """Whether a living process holds the claim."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def holder(path: Path) -> str:
    """Who holds the claim, in words: ``pid 12 on host, since ...``."""
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        return f"pid {about['pid']} on {about['host']}, since {about['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # between its lock and its first word, or just gone


def remove_stale(folder: Path) -> None:
    """Delete the files of claims whose holders were killed."""
    for path in folder.glob("*"):
        with claim(path):
            pass


def _locked(path: Path) -> int | None:
    tries = 3  # is_claimed holds the lock of a file that nobody claims for an instant
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError):  # another claim's end removed the folder in between
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            tries -= 1
            if not tries:
                os.close(handle)
                return None
            time.sleep(0.005)
        except FileNotFoundError:
            pass
        os.close(handle)
