"""The three ways to take a step of several members of a pack, and which of them is used."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Literal, Self

import torch
from transformers import PreTrainedModel

from lora_sweep.model.device import Device
from lora_sweep.multi_lora.dequantize import has_stateless_layers
from lora_sweep.multi_lora.member_threads import enter_member_thread
from lora_sweep.training.member import MemberTraining

# batched: several members in one forward; parallel: a thread for each member; sequential: one member after another.
StepMode = Literal["batched", "parallel", "sequential"]
MEMBER_THREADS = 2  # members that train in parallel; each thread holds the activations of one micro-batch
MIN_GAIN = 0.05  # a mode must save this part of the time of "sequential", or "sequential" is used


def list_step_modes(base: PreTrainedModel, members: int, device: Device) -> list[StepMode]:
    """The modes that are possible for so many members; the one that is probably the fastest comes first.

    On a CPU the cores wait less for each other when each works on a member of its own.
    """
    if members < 2:
        return ["sequential"]
    if device.type == "cpu" and torch.get_num_threads() >= MEMBER_THREADS and allows_parallel_forwards(base):
        return ["parallel", "sequential"]
    return ["batched", "sequential"]


def allows_parallel_forwards(base: PreTrainedModel) -> bool:
    """Whether two threads can run a forward of ``base`` at the same time.

    They cannot where a forward writes to the model: bitsandbytes' layers do, and so do position embeddings that are
    scaled by the length of the present rows.
    """
    rope_types = [str(getattr(module, "rope_type", "")) for module in base.modules()]
    is_scaled = any(kind in rope_type for rope_type in rope_types for kind in ("dynamic", "longrope"))
    return has_stateless_layers(base) and not is_scaled


class StepModeSelector:
    """Says how to take each step: in the only possible mode, or in the faster of two, measured in the first steps."""

    def __init__(self, modes: Sequence[StepMode]) -> None:
        self.modes = list(modes)
        self.seconds_per_token: list[float] = []  # of two steps in each mode, of which the first warms up
        self.measured_steps = 3 if modes[0] == "parallel" else 4  # a CPU is warm after the first mode's steps

    @property
    def is_measuring(self) -> bool:
        return len(self.modes) > 1

    @contextlib.contextmanager
    def time_step(self, tokens: int) -> Iterator[StepMode]:
        """Yield the mode for a step of so many tokens, and time the step as long as modes are compared."""
        if not self.is_measuring:
            yield self.modes[0]
            return
        started = time.perf_counter()
        yield self.modes[len(self.seconds_per_token) // 2]
        self.seconds_per_token.append((time.perf_counter() - started) / tokens)
        if len(self.seconds_per_token) == self.measured_steps:
            is_faster = self.seconds_per_token[1] < (1 - MIN_GAIN) * self.seconds_per_token[-1]
            self.modes = [self.modes[0 if is_faster else 1]]


class MemberThreads:
    """Threads that share the cores of a CPU. Each runs forward and backward passes of one member at a time.

    The calling thread does all the rest, such as optimizer steps and checkpoints. Used as a context manager.
    """

    def __init__(self) -> None:
        self.cores = torch.get_num_threads()
        numbers = itertools.count(1)
        self.pool = ThreadPoolExecutor(  # starts no thread before there is work for it
            MEMBER_THREADS, "member", initializer=lambda: enter_member_thread(next(numbers))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()

    def run_steps(
        self, active: Sequence[MemberTraining], add_gradient: Callable[[MemberTraining, float], None], once: bool
    ) -> None:
        """Take steps of ``active``: one step of each, or steps until fewer members than threads have steps left.

        The member with the most remaining steps is always next, so that few steps are left for a single thread.

        Args:
            add_gradient: computes the gradient of a member's next step in a thread; its second argument is the part of
                the elapsed time that counts as this member's.
        """
        waiting = list(active)
        running: dict[Future[None], MemberTraining] = {}
        try:
            while running or (waiting if once else len(waiting) >= MEMBER_THREADS):
                while waiting and len(running) < MEMBER_THREADS:
                    training = max(waiting, key=lambda training: training.remaining_steps)
                    waiting.remove(training)
                    running[self.pool.submit(self.run_forward, add_gradient, training)] = training
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    training = running.pop(future)
                    future.result()
                    training.take_step()
                    if training.outcome is None and not once:
                        waiting.append(training)
        finally:
            wait(running)  # also after an error in one thread: the others still use the base
            torch.set_num_threads(self.cores)  # MKL's number, which the threads have changed, holds for all threads

    def run_forward(self, add_gradient: Callable[[MemberTraining, float], None], training: MemberTraining) -> None:
        torch.set_num_threads(max(1, self.cores // MEMBER_THREADS))  # of the present thread
        add_gradient(training, 1 / MEMBER_THREADS)
