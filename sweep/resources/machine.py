"""This machine, without torch: devices for workers, their environment, memory, disk, and the kernel's kills.

What accelerators there are, torch says once, in a process of its own; the answer is kept until the machine, its
devices' files or torch are others. ``root`` is where /proc and /sys are looked for, so that a test can make its own.
"""

import ctypes.util
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import short_hash
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import VISIBLE
from lora_sweep.runs.cache import cache_folder
from lora_sweep.runs.files import read_json, write_json

ROOT = Path("/")
TCMALLOC = ("tcmalloc_minimal", "tcmalloc")


@dataclass(frozen=True)
class Place:
    """A device that a worker can own.

    Attributes:
        type: torch's: cpu, cuda, xpu, mps.
        index: among the accelerators that this process sees; None of the CPU.
        memory_bytes: all that it has, in use or not; None where nobody tells.
    """

    type: str
    index: int | None
    name: str
    memory_bytes: int | None


def places(devices: str | list[int]) -> list[Place]:
    """The devices that ``launch.devices`` means: each once, the CPU only where it is asked for or alone.

    Raises:
        Refused: an index that no accelerator has.
    """
    cpu = Place("cpu", None, "cpu", memory_bytes())
    if devices == "cpu":
        return [cpu]
    found = {place.index: place for place in accelerators()}
    if devices == "auto":
        return list(found.values()) or [cpu]
    for index in devices:
        if not found:
            raise Refused(f"launch.devices = {devices}", "this machine has no accelerator", ("auto", "cpu"))
        if index not in found:
            raise Refused(f"launch.devices = {devices}", f"there is no device {index}", map(str, found))
    return [found[int(index)] for index in devices]


def accelerators() -> list[Place]:
    """Every accelerator that torch would use here, from the cache or from a process that imports it."""
    if os.environ.get("LORA_SWEEP_DEVICE") == "cpu":  # as lora_sweep.model.device obeys it
        return []
    nodes = device_nodes()
    seen = {
        "machine": [platform.node(), _text(ROOT / "proc/sys/kernel/random/boot_id"), nodes],
        "visible": [os.environ.get(name) for name in VISIBLE],
        "torch": importlib.metadata.version("torch"),
    }
    kept = cache_folder() / "devices" / f"{short_hash(seen, 24)}.json"
    known = read_json(kept)
    if known is None:
        known = {"devices": ask_torch()}
        unready = not known["devices"] and any("nvidia" in node for node in nodes)  # its driver may be there tomorrow
        if not unready:
            write_json(kept, known)
    return [Place(**device) for device in known["devices"]]


def device_nodes() -> list[str]:
    """The names of the accelerators' files: a device that comes or goes changes them."""
    return sorted(str(path) for pattern in ("dev/nvidia*", "dev/dri/*") for path in ROOT.glob(pattern))


def ask_torch() -> list[dict[str, Any]]:
    """What ``python -m lora_sweep.model.device`` prints last."""
    command = [sys.executable, "-m", "lora_sweep.model.device"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"lora_sweep.model.device ended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def environment(place: Place, workers_on_it: int, cores: int) -> dict[str, str]:
    """The variables with which a worker process sees this place alone.

    Args:
        workers_on_it: how many workers share the place; on a CPU they share its cores, unless OMP_NUM_THREADS says how.
    """
    if place.type == "cpu":
        threads = {"OMP_NUM_THREADS": str(max(1, cores // workers_on_it))}
        share = workers_on_it > 1 and not os.environ.get("OMP_NUM_THREADS")
        return {"LORA_SWEEP_DEVICE": "cpu", **(threads if share else {}), **allocator()}
    if place.type == "cuda":
        hip = {"HIP_VISIBLE_DEVICES"} if os.environ.get("HIP_VISIBLE_DEVICES") else set()  # ROCm reads it first
        entry = visible_entry((*hip, "CUDA_VISIBLE_DEVICES")[0], place)
        return dict.fromkeys(("CUDA_VISIBLE_DEVICES", *hip), entry)
    if place.type == "xpu":
        return {"ZE_AFFINITY_MASK": visible_entry("ZE_AFFINITY_MASK", place)}
    return {}


def allocator() -> dict[str, str]:
    """The variable with which a process takes tcmalloc, where it is installed; torch's own launcher for CPUs does so.

    glibc spent 7 % of a CPU's step on looking for room, in one thread, and took fresh pages for what it did not find:
    with tcmalloc trainings took 4 to 15 % less time. Whatever allocator is preloaded already stays.
    """
    before = os.environ.get("LD_PRELOAD", "")
    if sys.platform != "linux" or "malloc" in before:
        return {}
    found = next(filter(None, map(ctypes.util.find_library, TCMALLOC)), None)
    return {} if found is None else {"LD_PRELOAD": f"{found}:{before}".rstrip(":")}


def visible_entry(variable: str, place: Place) -> str:
    """The place's name in a variable that lists devices: the index-th of those that it lists already, if it does."""
    index = place.index or 0
    listed = [entry.strip() for entry in os.environ.get(variable, "").split(",") if entry.strip()]
    return listed[index] if index < len(listed) else str(index)


# --- memory and disk ---------------------------------------------------------------------------------------------


def memory_bytes(root: Path = ROOT) -> int:
    """Memory that this process may use: the machine's, or less where a control group limits it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [
        _text(folder / name) for folder in control_groups(root) for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return min([total, *(int(text) for text in found if text and text.isdigit())])  # "max" means none


def oom_kills(root: Path = ROOT) -> int:
    """How many processes the kernel has killed for memory: in this process's control group, else on the machine."""
    files = [folder / name for folder in control_groups(root) for name in ("memory.events", "memory.oom_control")]
    for path in (*files, root / "proc/vmstat"):
        for line in (_text(path) or "").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that ``path`` lies on, or will lie on once it is made."""
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(nearest).free


def control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control group and its parents, nearest first: those of version 2, then of 1.

    A container may see the path that its host has, with nothing there: the mount itself is then its group.
    """
    paths: dict[str, str] = {}
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["memory" if controllers else ""] = path
    for controllers, mounts in (("", ("", "unified")), ("memory", ("memory",))):
        parts = [part for part in paths.get(controllers, "").split("/") if part not in ("", "..")]
        for mount in mounts if controllers in paths else ():
            top = root / "sys/fs/cgroup" / mount
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _text(path: Path) -> str | None:
    """A file's text without its last line's end; None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
