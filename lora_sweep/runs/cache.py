"""The cache folder: files that were fetched or converted once, for every runs folder of this user."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock


def cache_folder() -> Path:
    """The folder of fetched and converted files: $LORA_SWEEP_CACHE, or the user's cache folder."""
    configured = os.environ.get("LORA_SWEEP_CACHE")
    return Path(configured) if configured else platformdirs.user_cache_path("lora-sweep")


@contextlib.contextmanager
def build_once(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder to fill, which becomes ``folder`` in one step at the end; None where ``folder`` exists.

    Waits while another process builds the same folder. A process that is killed leaves no unfinished ``folder``.
    """
    if folder.exists():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock", fallback_to_soft=False):
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
