"""What this machine can do: the one place where a device, a dtype or a memory counter is chosen.

Everything else asks here and stays the same on a CPU and on any accelerator that torch knows. With
``LORA_SWEEP_DEVICE=cpu`` in the environment there is none.
``python -m lora_sweep.model.device`` prints them all, as JSON.
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
from typing import Any

import torch


@dataclass(frozen=True)
class Device:
    """Where a worker computes, and in which dtypes.

    Attributes:
        compute_dtype: of products with the base: bfloat16 where the device multiplies it natively, else float32
            (a CPU without AMX or AVX512-BF16 multiplies bfloat16 ten times slower than float32).
    """

    type: str  # torch's: cpu, cuda, xpu, mps
    name: str
    compute_dtype: torch.dtype

    @property
    def compute_bytes(self) -> int:
        return self.compute_dtype.itemsize


def pick_device() -> Device:
    """The accelerator that torch finds, or the CPU."""
    kind = find_accelerator()
    if kind is not None:
        if kind.type == "cuda":  # cuDNN's attention makes a plan for each new length: texts took twice as long (H200)
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


def list_accelerators() -> list[dict[str, Any]]:
    """Each accelerator: type, index, name, and memory_bytes, which is None where torch does not tell."""
    kind = find_accelerator()
    if kind is None:
        return []
    count = 1 if kind.type == "mps" else torch.accelerator.device_count()
    found: list[dict[str, Any]] = []
    for index in range(count):
        device: dict[str, Any] = {"type": kind.type, "index": index, "name": kind.type, "memory_bytes": None}
        if kind.type in ("cuda", "xpu"):
            properties: Any = (torch.cuda if kind.type == "cuda" else torch.xpu).get_device_properties(index)
            device |= {"name": properties.name, "memory_bytes": properties.total_memory}
        found.append(device)
    return found


def scores_every_position(device: Device) -> bool:
    """Whether TRL's fused head multiplies prompt positions too, which the loss then ignores.

    It leaves them out only where Triton runs (trl/trainer/utils.py, ``compact``).
    """
    return device.type not in ("cuda", "xpu")


def reset_peak_memory(device: Device) -> None:
    """Return freed memory to the system, and start the peaks of :func:`read_peak_memory` from zero.

    Does nothing where the system has no means for it.
    """
    gc.collect()
    if sys.platform == "linux":  # glibc keeps freed memory, and with the launcher's settings all of it
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux: "5" resets VmHWM, man 5 proc
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_peak_memory(device: Device) -> dict[str, int | None]:
    """``peak_memory_bytes`` of the process on the host, and ``peak_gpu_memory_bytes`` (None without a CUDA device)."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                host = int(line.split()[1]) * 1024
    gpu = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"peak_memory_bytes": host, "peak_gpu_memory_bytes": gpu}


def read_free_memory(device: Device) -> int | None:
    """Bytes that are free on the device, or for this process on the host of a CPU; None where nobody tells."""
    if device.type in ("cuda", "xpu"):
        free, _ = (torch.cuda if device.type == "cuda" else torch.xpu).mem_get_info()
        return int(free)
    if device.type != "cpu":
        return None
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")  # a container's limit, where it has one: "max" means none
    with contextlib.suppress(OSError, ValueError):
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return max(0, free)


def wait_for_device(device: Device) -> None:
    """Until the device has computed what it was told to: a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def read_gpu_utilization(device: Device) -> float | None:
    """Percent of the last sample period in which the GPU computed; None where it cannot be read."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization())
    except Exception:  # noqa: BLE001 - needs nvidia-ml-py (the gpu extra), a driver that tells, and the right to ask
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the host or on the device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


if __name__ == "__main__":
    print(json.dumps(list_accelerators()))
