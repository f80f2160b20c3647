"""How many trials of one base train together in a worker, and which ones: arithmetic over memory forecasts.

A pack holds the base once, an adapter with its optimizer state for each member, and the activations and logits of one
member at a time. On a CPU two members train beside each other, so it holds those of two.
"""

import math
from collections.abc import Sequence

from lora_sweep.facts.memory import MemoryForecast
from sweep.resources.machine import Slot

MAX_PACK_MEMBERS = 8  # when a worker dies, every member loses its work since its last checkpoint
MEMBER_THREADS = 2  # the same as in lora_sweep.training.step_modes
CPU_PEAK_FACTOR = 2  # a CPU process takes two to three times its forecast, and the rest of the machine needs some too
USABLE_ACCELERATOR_SHARE = 0.85  # the rest goes to the context and to what the allocator cannot use


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
        setting: ``launch.pack``. A number is taken as it is. ``auto`` is at most ``share``, and 1 if the memory is
            unknown.
        memory: bytes, from :func:`limit_pack_memory`.
        share: from :func:`share_waiting_trials`.
    """
    if isinstance(setting, int):
        return setting
    return 1 if memory is None else max(1, min(MAX_PACK_MEMBERS, share))


def share_waiting_trials(waiting: int, running: int, workers: int, idle: int) -> int:
    """How many of the waiting trials one worker takes, so that every worker has some, now and after the running ones.

    Args:
        waiting, running: numbers of trials.
        workers: how many there are.
        idle: how many of them run nothing, including the one that asks.
    """
    return min(math.ceil(waiting / idle), math.ceil((waiting + running) / workers))


def find_largest_pack(setting: int | str) -> int:
    """The largest number of members that ``launch.pack`` allows, whatever the memory."""
    return setting if isinstance(setting, int) else MAX_PACK_MEMBERS


def count_member_threads(slot: Slot) -> int:
    """How many members of a pack compute at the same time, each with activations in memory."""
    return MEMBER_THREADS if slot.type == "cpu" else 1


def forecast_pack_memory(forecasts: Sequence[MemoryForecast], threads: int) -> int:
    """Bytes that trials of one base need together, if ``threads`` of them compute at the same time."""
    return (
        max(forecast.base for forecast in forecasts)
        + sum(forecast.adapter for forecast in forecasts)
        + sum(sorted(forecast.activations for forecast in forecasts)[-threads:])
        + sum(sorted(forecast.logits for forecast in forecasts)[-threads:])
    )


def choose_pack_members(
    forecasts: Sequence[MemoryForecast], max_members: int, memory: int | None, threads: int
) -> list[int]:
    """Which of these trials of one base to run together, as indices into ``forecasts``.

    The first trial is always chosen: even if it does not fit alone, it has to be tried. Each further one is chosen if
    it fits beside those chosen before it.

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
