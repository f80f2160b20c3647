"""Where and with what a result was made: versions, commit, device, dtypes, times."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from lora_sweep.device import Device

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "lora-sweep")


def provenance(device: Device, started: str) -> dict[str, Any]:
    """Where and with what a result was made."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    commit, dirty = git_state()
    return {
        "versions": versions,
        "git_commit": commit,
        "git_dirty": dirty,
        "device": device.name,
        "dtype": str(device.compute_dtype).removeprefix("torch."),
        "adapter_dtype": "float32",
        "platform": platform.platform(),
        "started": started,
        "finished": now(),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # ours, run from a checkout that is not installed
        return "not installed"


def git_state() -> tuple[str | None, bool | None]:
    """The commit of this code and whether files differ from it; None for both outside a git checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None, None
    return commit, None if changes is None else bool(changes)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
