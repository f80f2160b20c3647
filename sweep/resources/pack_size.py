"""How many trials of one base run together in a worker, and which: arithmetic over memory forecasts.

A pack needs the base once, every member's adapter with its optimizer's states, and the activations and logits of one
member at a time; on a CPU of two, which train beside each other there.
"""

import math
from collections.abc import Sequence

from lora_sweep.facts.memory import Forecast
from sweep.resources.machine import Place

MOST = 8  # a worker's death costs all members what they did since their last checkpoints
LANES = 2  # as lora_sweep.training.step_modes has it
CPU_PEAK = 2  # a CPU process takes two to three times its forecast, and the rest of the machine needs some too
ACCELERATOR_SHARE = 0.85  # of its memory: the context, and what the allocator cannot use


def room_bytes(place: Place, workers: int) -> int | None:
    """What the forecast of a pack may come to on a place; None where the place does not tell its memory.

    Args:
        workers: that share the place.
    """
    if place.memory_bytes is None:
        return None
    usable = place.memory_bytes / CPU_PEAK if place.type == "cpu" else place.memory_bytes * ACCELERATOR_SHARE
    return int(usable / workers)


def most_members(asked: int | str, room: int | None, share: int) -> int:
    """How many trials a worker may take at once, if they fit.

    ``auto`` takes no more than its ``share``, and one where nobody tells the memory. A number is taken at its word.

    Args:
        asked: ``launch.pack``.
    """
    if isinstance(asked, int):
        return asked
    return 1 if room is None else max(1, min(MOST, share))


def even_share(waiting: int, running: int, workers: int, idle: int) -> int:
    """How many of the waiting trials a worker takes so that none is without, now or when those that run have ended.

    Args:
        idle: how many of the workers run nothing, this one among them.
    """
    return min(math.ceil(waiting / idle), math.ceil((waiting + running) / workers))


def at_once(asked: int | str) -> int:
    """The most members that a pack can have, whatever the memory."""
    return asked if isinstance(asked, int) else MOST


def at_a_time(place: Place) -> int:
    """Of how many members a pack has activations at once."""
    return LANES if place.type == "cpu" else 1


def pack_bytes(forecasts: Sequence[Forecast], at_a_time: int) -> int:
    """What trials of one base need together, with the activations of so many at a time."""
    return (
        max(each.base for each in forecasts)
        + sum(each.adapter for each in forecasts)
        + sum(sorted(each.activations for each in forecasts)[-at_a_time:])
        + sum(sorted(each.logits for each in forecasts)[-at_a_time:])
    )


def packed(forecasts: Sequence[Forecast], most: int, room: int | None, at_a_time: int) -> list[int]:
    """Which of these trials of one base to run together: their places in ``forecasts``, the first of which is set.

    Whoever would not fit beside those before is left out; the first is not, for alone it has to be tried.
    """
    chosen = [0]
    for place in range(1, len(forecasts)):
        if len(chosen) >= most:
            break
        together = [forecasts[each] for each in [*chosen, place]]
        if room is None or pack_bytes(together, at_a_time) <= room:
            chosen.append(place)
    return chosen
