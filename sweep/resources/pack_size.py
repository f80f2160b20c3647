"""Decide how many trials on one base train together in a worker, and which: arithmetic over memory forecasts.

The memory of a pack has the base once, the adapter and the optimizer state of each member, and the activations and
logits of one member at a time. On a CPU two members train at the same time, with activations and logits each.
"""

import math
from collections.abc import Sequence

from lora_sweep.facts.memory import MemoryForecast
from sweep.resources.machine import Slot

MAX_PACK_MEMBERS = 8  # when a worker dies, every member loses its work since its last checkpoint
MEMBER_THREADS = 2  # on a CPU; the same number as in lora_sweep.training.step_modes
CPU_PEAK_FACTOR = 2  # a process on a CPU takes two to three times its forecast, and other processes need memory too
USABLE_ACCELERATOR_SHARE = 0.85  # the context and the gaps of the allocator take the rest


def limit_pack_memory(slot: Slot, workers: int) -> int | None:
    """The bytes that a pack's forecast may reach on a slot; None if the slot does not report its memory.

    Args:
        workers: how many workers share the slot.
    """
    if slot.memory_bytes is None:
        return None
    if slot.type == "cpu":
        return int(slot.memory_bytes / CPU_PEAK_FACTOR / workers)
    return int(slot.memory_bytes * USABLE_ACCELERATOR_SHARE / workers)


def limit_pack_members(setting: int | str, memory: int | None, share: int) -> int:
    """How many trials a worker may take at once, if they fit its memory.

    Args:
        setting: ``launch.pack``. A number is used as it is. ``auto`` means at most ``share``, and 1 if the memory is
            unknown.
        memory: bytes, from :func:`limit_pack_memory`.
        share: from :func:`share_waiting_trials`.
    """
    if isinstance(setting, int):
        return setting
    return 1 if memory is None else max(1, min(MAX_PACK_MEMBERS, share))


def share_waiting_trials(waiting: int, running: int, workers: int, idle: int) -> int:
    """How many of the waiting trials one worker takes, so that the others get as many, now and when they are idle.

    Args:
        waiting: the number of trials that wait.
        running: the number of trials that run.
        workers: the number of workers.
        idle: the number of workers that run nothing, this one included.
    """
    return min(math.ceil(waiting / idle), math.ceil((waiting + running) / workers))


def find_largest_pack(setting: int | str) -> int:
    """The largest number of members that ``launch.pack`` allows if memory is no limit."""
    return setting if isinstance(setting, int) else MAX_PACK_MEMBERS


def count_member_threads(slot: Slot) -> int:
    """How many members of a pack compute at the same time, each with its activations in memory."""
    return MEMBER_THREADS if slot.type == "cpu" else 1


def forecast_pack_memory(forecasts: Sequence[MemoryForecast], threads: int) -> int:
    """Bytes that trials on one base need together, if ``threads`` of them compute at the same time."""
    return (
        max(forecast.base for forecast in forecasts)
        + sum(forecast.adapter for forecast in forecasts)
        + sum(sorted(forecast.activations for forecast in forecasts)[-threads:])
        + sum(sorted(forecast.logits for forecast in forecasts)[-threads:])
    )


def choose_pack_members(
    forecasts: Sequence[MemoryForecast], max_members: int, memory: int | None, threads: int
) -> list[int]:
    """Choose which trials on one base run together, as indices into ``forecasts``.

    The first trial is always chosen: it has to be tried even if it does not fit. Each further trial is chosen if it
    fits together with those chosen before it.

    Args:
        memory: bytes; None: no limit.
    """
    chosen = [0]
    for index in range(1, len(forecasts)):
        if len(chosen) >= max_members:
            break
        together = [forecasts[member] for member in [*chosen, index]]
        if memory is None or forecast_pack_memory(together, threads) <= memory:
            chosen.append(index)
    return chosen
