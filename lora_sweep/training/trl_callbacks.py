"""Callbacks of transformers' Trainer: one reports each step, one decides when to save and when to stop."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_sweep.errors import Diverged
from lora_sweep.model.device import Device, read_gpu_utilization
from lora_sweep.runs.checkpoints import seal_checkpoint
from lora_sweep.training.progress import OnStep, Progress, StepValues


class StepCallback(TrainerCallback):
    """Keeps the loss curve, reports each step, and ends a training when its loss or gradient is not finite."""

    def __init__(self, progress: Progress, on_step: OnStep, device: Device) -> None:
        self.progress, self.on_step, self.device = progress, on_step, device
        self.utilization_samples: list[float] = []
        self.started, self.tokens_at_start = time.perf_counter(), progress.tokens

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.started, self.tokens_at_start = time.perf_counter(), self.progress.tokens

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: StepValues | None = None,
        **kwargs: object,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        keys: tuple[str, ...] = ("loss", "learning_rate", "grad_norm", "epoch")
        values = {key: float(logs[key]) for key in keys if key in logs}
        for key in ("loss", "grad_norm"):
            if not math.isfinite(values.get(key, 0.0)):
                raise Diverged(f"{key} is {values[key]} at step {state.global_step} of {state.max_steps}")
        self.progress.losses.append({"step": state.global_step, **values})
        percent = read_gpu_utilization(self.device)
        self.utilization_samples += [] if percent is None else [percent]
        seconds, tokens = time.perf_counter() - self.started, self.progress.tokens - self.tokens_at_start
        self.on_step(state.global_step, state.max_steps, {**values, "tokens_per_second": tokens / seconds})


class CheckpointCallback(TrainerCallback):
    """Tells the trainer when to save, seals what it saved, and ends the training on request.

    Args:
        every: steps between two checkpoints; None: save only on a request to stop.
        folder: where the trainer saves; None: nothing is saved.
        stop: called after every optimizer step but the last; True: save and end.
    """

    def __init__(self, progress: Progress, every: int | None, folder: Path | None, stop: Callable[[], bool]) -> None:
        self.progress, self.every, self.folder, self.stop = progress, every, folder, stop
        self.is_stopped = False
        self.counted_until = 0.0  # the time up to which ``progress.train_seconds`` counts
        self.is_first_epoch = True

    @contextlib.contextmanager
    def count_train_seconds(self) -> Iterator[None]:
        """Within this context, which is around ``trainer.train``, the seconds are counted."""
        self.counted_until = time.perf_counter()
        yield
        self.add_seconds()

    def add_seconds(self) -> None:
        now = time.perf_counter()
        self.progress.train_seconds += now - self.counted_until
        self.counted_until = now

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Give a resumed epoch the same order of rows that it had before.

        group_by_length draws the order with torch's generator, which transformers restores too late for that.
        """
        if self.is_first_epoch and self.progress.epoch_rng:
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(self.progress.epoch_rng), dtype=torch.uint8))
        self.is_first_epoch = False
        self.progress.epoch_rng = torch.get_rng_state().numpy().tobytes().hex()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: StepValues | None = None,
        **kwargs: object,
    ) -> None:
        """Decide after each step whether to save and stop; the trainer reads the decision next."""
        if not logs or "loss" not in logs or state.global_step == state.max_steps:
            return
        self.is_stopped = self.stop()
        is_due = self.every is not None and state.global_step % self.every == 0
        control.should_save = self.folder is not None and (self.is_stopped or is_due)
        control.should_training_stop = control.should_training_stop or self.is_stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        assert self.folder is not None
        self.add_seconds()
        seal_checkpoint(self.folder, state.global_step, dataclasses.asdict(self.progress))
