"""How a step of several members of a pack is made: in one forward, beside each other on a CPU's cores, or in turns.

Knows nothing of what a step computes.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal, Protocol, TypeVar

import torch

from lora_sweep.model.device import Device
from lora_sweep.multi_lora.dequantize import has_stateless_layers
from lora_sweep.multi_lora.member_threads import enter_member_thread

StepMode = Literal[
    "batched", "parallel", "sequential"
]  # one forward for several; each in a thread of its own; one after another
MEMBER_THREADS = 2  # threads for members beside each other: each has the activations of a micro-batch
WORTH = 0.95  # of the time of one after another: what another way must stay below to be used


class Member(Protocol):
    """What trains, until it has an ``outcome``."""

    outcome: Any

    @property
    def left(self) -> int:
        """Steps that it has yet to make."""

    def take_step(self) -> None: ...


M = TypeVar("M", bound=Member)


def list_step_modes(base: Any, members: int, device: Device) -> list[StepMode]:
    """How steps of so many members can be made, what is likely to be fast first.

    A CPU's cores wait less for one another where each works on a member of its own.
    """
    if members < 2:
        return ["sequential"]
    if device.type == "cpu" and torch.get_num_threads() >= MEMBER_THREADS and allows_parallel_forwards(base):
        return ["parallel", "sequential"]
    return ["batched", "sequential"]


def allows_parallel_forwards(base: Any) -> bool:
    """Whether two forwards at once do not meet in ``base``: bitsandbytes' own layers note things in themselves, and so
    do positions that are scaled by the length of the rows at hand."""
    scaled = any(kind in str(getattr(m, "rope_type", "")) for m in base.modules() for kind in ("dynamic", "longrope"))
    return has_stateless_layers(base) and not scaled


class StepModeSelector:
    """How a step of several members is made: the one way there is, or the faster of two in the first steps."""

    def __init__(self, possible: Sequence[StepMode]) -> None:
        self.ways = list(possible)
        self.seconds: list[float] = []  # a token: of two steps each way, the first of which warms up
        self.enough = 3 if possible[0] == "parallel" else 4  # a CPU needs less to be warm

    @property
    def measures(self) -> bool:
        """Whether it has yet to be said which is faster."""
        return len(self.ways) > 1

    @contextlib.contextmanager
    def step(self, tokens: int) -> Iterator[StepMode]:
        """Around a step of so many tokens; says how to make it."""
        if not self.measures:
            yield self.ways[0]
            return
        begun = time.perf_counter()
        yield self.ways[len(self.seconds) // 2]
        self.seconds.append((time.perf_counter() - begun) / tokens)
        if len(self.seconds) == self.enough:
            self.ways = [self.ways[0 if self.seconds[1] < WORTH * self.seconds[-1] else 1]]


class MemberThreads:
    """Threads that share the cores of a CPU, each with a forward of its own. All else is done by who calls."""

    def __init__(self) -> None:
        self.cores = torch.get_num_threads()
        numbers = itertools.count(1)
        self.pool = ThreadPoolExecutor(  # starts no thread before it is given work
            MEMBER_THREADS, "lane", initializer=lambda: enter_member_thread(next(numbers))
        )

    def steps(self, alive: Sequence[M], forwards: Callable[[M, float], None], once: bool) -> None:
        """Steps of those ``alive``: one of each, or all until fewer are left than there are threads.

        Whoever has most steps left is next, so that as few as can be are left for one thread.

        Args:
            forwards: of the next step of one, told its share of the time that passes.
        """
        waiting, running = list(alive), dict[Future[None], M]()
        try:
            while running or (waiting if once else len(waiting) >= MEMBER_THREADS):
                while waiting and len(running) < MEMBER_THREADS:
                    run = max(waiting, key=lambda run: run.left)
                    waiting.remove(run)
                    running[self.pool.submit(self.task, forwards, run)] = run
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(done)
                    done.result()
                    run.take_step()
                    if run.outcome is None and not once:
                        waiting.append(run)
        finally:
            wait(running)  # also after an error of one: they are at work in the base
            torch.set_num_threads(self.cores)  # a task's number is MKL's for all threads

    def task(self, forwards: Callable[[M, float], None], run: M) -> None:
        torch.set_num_threads(max(1, self.cores // MEMBER_THREADS))  # of this thread
        forwards(run, 1 / MEMBER_THREADS)

    def close(self) -> None:
        self.pool.shutdown()
