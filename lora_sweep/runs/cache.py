"""The cache folder: what was fetched or converted once."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Where fetched and converted files are kept: $LORA_SWEEP_CACHE, or the user's cache directory."""
    chosen = os.environ.get("LORA_SWEEP_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("lora-sweep")


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder to fill, which then becomes ``folder`` in one step; None when ``folder`` is there.

    Two processes never make the same folder at once, and a killed one leaves nothing half made under the name.
    """
    if folder.exists():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        for stale in folder.parent.glob(f".{folder.name}.part-*"):
            shutil.rmtree(stale)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.part-"))
        try:
            yield part
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
