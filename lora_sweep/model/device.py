"""The device of this machine: which one, its compute dtype, and its memory counters.

All other code is the same on a CPU and on any accelerator that torch knows. ``LORA_SWEEP_DEVICE=cpu`` in the
environment hides the accelerators. ``python -m lora_sweep.model.device`` prints all accelerators as JSON.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch


@dataclass(frozen=True)
class Device:
    """The device on which a worker computes.

    Attributes:
        type: torch's name: cpu, cuda, xpu or mps.
        compute_dtype: dtype of products with the base: bfloat16 if the device multiplies it natively, else float32
            (a CPU without AMX or AVX512-BF16 multiplies bfloat16 ten times slower than float32).
    """

    type: str
    name: str
    compute_dtype: torch.dtype

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number in the compute dtype."""
        return self.compute_dtype.itemsize


def pick_device() -> Device:
    """The accelerator that torch finds, or the CPU."""
    kind = find_accelerator()
    if kind is not None:
        if kind.type == "cuda":  # cuDNN's attention makes a plan for each length: generation took twice as long (H200)
            torch.backends.cuda.enable_cudnn_sdp(False)
        name = torch.cuda.get_device_name() if kind.type == "cuda" else kind.type
        native = kind.type == "xpu" or (kind.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
        return Device(kind.type, name, torch.bfloat16 if native else torch.float32)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Device("cpu", f"cpu ({torch.get_num_threads()} threads)", torch.bfloat16 if native else torch.float32)


def find_accelerator() -> torch.device | None:
    """The kind of accelerator that torch finds, unless the environment asks for the CPU."""
    if os.environ.get("LORA_SWEEP_DEVICE") == "cpu" or not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_accelerator()


class Accelerator(TypedDict):
    """One accelerator; ``memory_bytes`` is its whole memory, None if torch does not tell it."""

    type: str
    index: int
    name: str
    memory_bytes: int | None


def list_accelerators() -> list[Accelerator]:
    """All accelerators that torch sees."""
    kind = find_accelerator()
    if kind is None:
        return []
    count = 1 if kind.type == "mps" else torch.accelerator.device_count()
    accelerators: list[Accelerator] = []
    for index in range(count):
        accelerator: Accelerator = {"type": kind.type, "index": index, "name": kind.type, "memory_bytes": None}
        if kind.type in ("cuda", "xpu"):
            properties: Any = (torch.cuda if kind.type == "cuda" else torch.xpu).get_device_properties(index)
            accelerator["name"], accelerator["memory_bytes"] = properties.name, properties.total_memory
        accelerators.append(accelerator)
    return accelerators


def scores_every_position(device: Device) -> bool:
    """Whether TRL's fused head computes the logits of prompt positions too, which the loss ignores.

    It leaves them out only where Triton runs (trl/trainer/utils.py, ``compact``).
    """
    return device.type not in ("cuda", "xpu")


def reset_peak_memory(device: Device) -> None:
    """Return freed memory to the system, and start the peaks of :func:`read_peak_memory` from zero.

    Parts that the system does not support are skipped.
    """
    gc.collect()
    if sys.platform == "linux":  # glibc keeps freed memory; with the settings of our launcher, it keeps all
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # on Linux, writing "5" resets VmHWM (man 5 proc)
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_peak_memory(device: Device) -> dict[str, int | None]:
    """``peak_memory_bytes`` of the process on the host, and ``peak_gpu_memory_bytes`` (None without a CUDA device)."""
    # ru_maxrss is in bytes on macOS, in KiB elsewhere. It cannot be reset, so VmHWM is used where it exists.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                host = int(line.split()[1]) * 1024
    gpu = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"peak_memory_bytes": host, "peak_gpu_memory_bytes": gpu}


def read_free_memory(device: Device) -> int | None:
    """Free bytes on the device, or on the host for a CPU; None if torch cannot tell."""
    if device.type in ("cuda", "xpu"):
        free, _ = (torch.cuda if device.type == "cuda" else torch.xpu).mem_get_info()
        return int(free)
    if device.type != "cpu":
        return None
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")  # the limit of a container; int() raises for "max", which means no limit
    with contextlib.suppress(OSError, ValueError):
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return max(0, free)


def wait_for_device(device: Device) -> None:
    """Block until the device has finished its queued work. A CPU queues none."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def read_gpu_utilization(device: Device) -> float | None:
    """Percent of the last sample period in which the GPU computed; None where it cannot be read."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization())
    except Exception:  # noqa: BLE001 - it needs nvidia-ml-py (the gpu extra), support by the driver, and permission
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the host or of the device is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


if __name__ == "__main__":
    print(json.dumps(list_accelerators()))
