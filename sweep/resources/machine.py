"""What this machine has, without torch: slots for workers, memory and disk; and the environment that binds a worker.

A child process asks torch once which accelerators there are. Its answer is cached until the machine, its device files
or torch change. ``root`` is the folder that holds /proc and /sys; tests pass a folder with files that they made.
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
from typing import TypedDict

from lora_sweep.config.identity import short_hash
from lora_sweep.config.schema import Launch
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import VISIBLE_DEVICE_VARIABLES
from lora_sweep.runs.cache import cache_folder
from lora_sweep.runs.files import read_json, write_json

ROOT = Path("/")
TCMALLOC_LIBRARIES = ("tcmalloc_minimal", "tcmalloc")


class DeviceFields(TypedDict):
    """The fields of a :class:`Slot`, as ``lora_sweep.model.device`` prints them."""

    type: str
    index: int | None
    name: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Slot:
    """What one worker runs on: a device of this machine. Several workers can share a device.

    Attributes:
        type: torch's name for the kind of device: cpu, cuda, xpu or mps.
        index: the device's number among the accelerators that this process sees; None for the CPU.
        memory_bytes: all the memory of the device, free or in use; None if the device does not report it.
    """

    type: str
    index: int | None
    name: str
    memory_bytes: int | None


def find_slots(devices: str | list[int]) -> list[Slot]:
    """A slot for each device that ``launch.devices`` selects. ``auto`` selects all accelerators, or else the CPU.

    Raises:
        Refused: no accelerator has an index that ``launch.devices`` lists.
    """
    cpu = Slot("cpu", None, "cpu", read_memory_limit())
    if devices == "cpu":
        return [cpu]
    accelerators = {slot.index: slot for slot in find_accelerators()}
    if devices == "auto":
        return list(accelerators.values()) or [cpu]
    for index in devices:
        if not accelerators:
            raise Refused(f"launch.devices = {devices}", "this machine has no accelerator", ("auto", "cpu"))
        if index not in accelerators:
            raise Refused(f"launch.devices = {devices}", f"there is no device {index}", map(str, accelerators))
    return [accelerators[int(index)] for index in devices]


def assign_slots(settings: Launch) -> list[Slot]:
    """The slot of each worker that the settings ask for. Several workers may share one slot."""
    slots = find_slots(settings.devices)
    return [slots[number % len(slots)] for number in range(settings.workers or len(slots))]


def find_accelerators() -> list[Slot]:
    """Every accelerator that torch can use here, from the cache or from a child process that imports torch."""
    if os.environ.get("LORA_SWEEP_DEVICE") == "cpu":  # lora_sweep.model.device obeys this variable too
        return []
    device_files = list_device_files()
    cache_key = {
        "machine": [platform.node(), _read_text(ROOT / "proc/sys/kernel/random/boot_id"), device_files],
        "visible": [os.environ.get(name) for name in VISIBLE_DEVICE_VARIABLES],
        "torch": importlib.metadata.version("torch"),
    }
    path = cache_folder() / "devices" / f"{short_hash(cache_key, 24)}.json"
    cached = read_json(path)
    if cached is not None:
        return [Slot(**device) for device in cached["devices"]]
    devices = ask_torch_for_devices()
    driver_is_missing = not devices and any("nvidia" in name for name in device_files)  # somebody may install it later
    if not driver_is_missing:
        write_json(path, {"devices": devices})
    return [Slot(**device) for device in devices]


def list_device_files() -> list[str]:
    """The files of accelerators under /dev. The list changes when a device is added or removed."""
    return sorted(str(path) for pattern in ("dev/nvidia*", "dev/dri/*") for path in ROOT.glob(pattern))


def ask_torch_for_devices() -> list[DeviceFields]:
    """Run ``python -m lora_sweep.model.device`` and return the devices that it prints on its last line."""
    command = [sys.executable, "-m", "lora_sweep.model.device"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"lora_sweep.model.device ended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    answer: list[DeviceFields] = json.loads(done.stdout.splitlines()[-1])
    return answer


def build_worker_environment(slot: Slot, workers_on_slot: int, cores: int) -> dict[str, str]:
    """The environment variables that let a worker process see this slot's device and no other.

    Args:
        workers_on_slot: how many workers share the slot. On a CPU they divide its cores, unless OMP_NUM_THREADS is set.
        cores: how many CPU cores the machine has.
    """
    if slot.type == "cpu":
        threads = {"OMP_NUM_THREADS": str(max(1, cores // workers_on_slot))}
        divides_cores = workers_on_slot > 1 and not os.environ.get("OMP_NUM_THREADS")
        return {"LORA_SWEEP_DEVICE": "cpu", **(threads if divides_cores else {}), **choose_allocator()}
    if slot.type == "cuda":
        hip = {"HIP_VISIBLE_DEVICES"} if os.environ.get("HIP_VISIBLE_DEVICES") else set()  # ROCm reads this one first
        device = name_visible_device((*hip, "CUDA_VISIBLE_DEVICES")[0], slot)
        return dict.fromkeys(("CUDA_VISIBLE_DEVICES", *hip), device)
    if slot.type == "xpu":
        return {"ZE_AFFINITY_MASK": name_visible_device("ZE_AFFINITY_MASK", slot)}
    return {}


def choose_allocator() -> dict[str, str]:
    """The variable that makes a process use tcmalloc, if it is installed, as torch's launcher for CPUs does.

    On a CPU glibc's allocator took 7 % of a training step, in one thread; with tcmalloc training took 4 to 15 % less
    time. If another allocator is preloaded already, it stays.
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    if sys.platform != "linux" or "malloc" in preloaded:
        return {}
    library = next(filter(None, map(ctypes.util.find_library, TCMALLOC_LIBRARIES)), None)
    return {} if library is None else {"LD_PRELOAD": f"{library}:{preloaded}".rstrip(":")}


def name_visible_device(variable: str, slot: Slot) -> str:
    """The name of the slot's device in a variable like CUDA_VISIBLE_DEVICES.

    If the variable is set already, the slot's index is a position in its list of devices.
    """
    index = slot.index or 0
    listed = [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
    return listed[index] if index < len(listed) else str(index)


# --- memory and disk ---------------------------------------------------------------------------------------------


def read_memory_limit(root: Path = ROOT) -> int:
    """Bytes of memory that this process may use: all memory of the machine, or less if a control group limits it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_read_text(folder / name) for folder in list_control_groups(root) for name in names]
    return min([total, *(int(limit) for limit in limits if limit and limit.isdigit())])  # "max" means no limit


def count_oom_kills(root: Path = ROOT) -> int:
    """How many processes the kernel killed because memory ran out, in our control group or else on the machine."""
    files = [folder / name for folder in list_control_groups(root) for name in ("memory.events", "memory.oom_control")]
    for path in (*files, root / "proc/vmstat"):
        for line in (_read_text(path) or "").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def measure_free_disk(path: Path) -> int:
    """Free bytes of the disk that holds ``path``, or that will hold it if it does not exist yet."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def list_control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of its parents, nearest first: version 2, then version 1.

    In a container, /proc may show a path of the host that does not exist inside. The limit is then in the folder of
    the mount, which comes last.
    """
    paths: dict[str, str] = {}
    for line in (_read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["memory" if controllers else ""] = path
    for controllers, mounts in (("", ("", "unified")), ("memory", ("memory",))):
        parts = [part for part in paths.get(controllers, "").split("/") if part not in ("", "..")]
        for mount in mounts if controllers in paths else ():
            top = root / "sys/fs/cgroup" / mount
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _read_text(path: Path) -> str | None:
    """A file's text without surrounding white space; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
