"""One member of a pack in training: its planned steps, its optimizer, its progress and its checkpoints.

The forward and backward passes are made in ``pack_step``, for one or several members at a time.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lora_sweep.config.schema import Train
from lora_sweep.data.prompts import Example
from lora_sweep.errors import Diverged, Preempted
from lora_sweep.model.device import Device, read_gpu_utilization
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.layout import MemberRows, measure_common_prefix
from lora_sweep.multi_lora.peft_format import export_tensors, import_tensors
from lora_sweep.runs.checkpoints import checkpoint_folder, find_last_valid, prune_checkpoints, seal_checkpoint
from lora_sweep.training.progress import (
    OnStep,
    Progress,
    StepValues,
    Trained,
    TrainingOutcome,
    average_samples,
)
from lora_sweep.training.step_plan import PlannedStep, make_step_plan

ADAPTER_FILE = "adapter_model.safetensors"
STATE_FILE = "packed.pt"  # optimizer and schedule; only checkpoints of a pack have it, those of TRL do not


@dataclass
class PackMember:
    """What one member of a pack trains, and with which settings. The adapter is trained in place.

    Attributes:
        on_step: called after every optimizer step, also with ``tokens_per_second`` since the start of the process.
        checkpoints: a folder that outlives the process; None: nothing is saved.
        stop: called after every optimizer step; True: save and end.
    """

    adapter: Adapter
    rows: list[Example]
    train: Train
    seed: int
    on_step: OnStep = lambda step, steps, values: None
    checkpoints: Path | None = None
    stop: Callable[[], bool] = lambda: False


class MemberTraining:
    """The training of one member, from its last checkpoint on. ``outcome`` is None until it has ended."""

    def __init__(self, member: PackMember, device: Device, scratch: Path) -> None:
        self.member, self.device = member, device
        self.longest_row = max(len(row.input_ids) for row in member.rows)
        self.prefix_tokens = measure_common_prefix(member.rows)
        self.outcome: TrainingOutcome | None = None
        self.steps_done = 0
        self.loss: torch.Tensor = torch.zeros((), device=device.type)  # of the next step, summed over its micro-batches
        member.adapter.set_dtype(device.compute_dtype)
        member.adapter.allocate_gradient()
        assert member.adapter.gradient is not None
        self.gradient = member.adapter.gradient  # [n]: of all numbers of the adapter
        self.parameter = torch.nn.Parameter(member.adapter.numbers)  # [n]
        self.parameter.grad = self.gradient
        plan = make_step_plan(self.parameter, member.rows, member.train, member.seed, device, scratch)
        self.steps, self.optimizer, self.schedule = plan.steps, plan.optimizer, plan.schedule
        self.progress = Progress()
        self.resumed_from: int | None = None
        self.utilization_samples: list[float] = []
        if member.checkpoints is not None:
            self.resume_from_checkpoint(member.checkpoints)
        self.seconds_at_start, self.tokens_at_start = self.progress.train_seconds, self.progress.tokens
        if self.remaining_steps == 0:
            self.finish_training()

    @property
    def remaining_steps(self) -> int:
        return len(self.steps) - self.steps_done

    @property
    def next_step(self) -> PlannedStep:
        return self.steps[self.steps_done]

    @property
    def next_rows(self) -> list[Example]:
        """The rows of the next step."""
        return [self.member.rows[index] for index in self.next_step.row_indices]

    def count_step_tokens(self) -> int:
        """Tokens of the next step's rows."""
        return sum(len(row.input_ids) for row in self.next_rows)

    def count_step_labels(self) -> int:
        """Labelled tokens of the next step; its loss is their mean."""
        whole_row = self.member.train.loss_on == "all"
        return sum(len(row.input_ids) - (1 if whole_row else max(1, row.prompt_length)) for row in self.next_rows)

    def split_micro_batches(self) -> list["MicroBatch"]:
        """The next step in micro-batches; where there are several, of rows of similar length."""
        rows = self.next_rows
        if len(self.next_step.micro_batches) > 1:
            rows.sort(key=lambda row: len(row.input_ids))
        size = self.member.train.per_device_train_batch_size
        return [MicroBatch(self, rows[start : start + size]) for start in range(0, len(rows), size)]

    # --- a step ------------------------------------------------------------------------------------------------------

    def take_step(self) -> None:
        """Clip the gradient, update the adapter, report, and save where a checkpoint is due.

        Afterwards the gradient is zero. A loss or gradient norm that is not finite ends the training as ``Diverged``.
        """
        started, max_norm = time.perf_counter(), self.member.train.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_([self.parameter], max_norm)
        values = {
            "loss": float(self.loss),
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            "grad_norm": float(norm),
            "epoch": self.next_step.epoch,
        }
        self.progress.tokens += self.count_step_tokens()
        self.steps_done += 1
        for key in ("loss", "grad_norm"):
            if not math.isfinite(values[key]):
                self.outcome = Diverged(f"{key} is {values[key]} at step {self.steps_done} of {len(self.steps)}")
                return
        self.optimizer.step()
        self.schedule.step()
        self.member.adapter.update_copy()
        self.discard_gradient()
        self.progress.losses.append({"step": self.steps_done, **values})
        self.progress.train_seconds += time.perf_counter() - started
        self.report_step(values)
        if self.remaining_steps == 0:
            self.finish_training()
        else:
            self.save_or_stop()

    def has_finite_gradient(self) -> bool:
        """Whether the loss and the gradient of the next step are finite."""
        return bool(torch.isfinite(self.loss) & torch.isfinite(self.gradient).all())

    def discard_gradient(self) -> None:
        """Set the gradient and the loss of the next step to zero."""
        self.gradient.zero_()
        self.loss = torch.zeros_like(self.loss)

    def report_step(self, values: StepValues) -> None:
        percent = read_gpu_utilization(self.device)
        self.utilization_samples += [] if percent is None else [percent]
        seconds = self.progress.train_seconds - self.seconds_at_start
        tokens = self.progress.tokens - self.tokens_at_start
        self.member.on_step(self.steps_done, len(self.steps), {**values, "tokens_per_second": tokens / seconds})

    def finish_training(self) -> None:
        self.outcome = Trained(
            self.steps_done,
            self.progress.train_seconds,
            self.progress.tokens,
            self.progress.losses,
            average_samples(self.utilization_samples),
            self.resumed_from,
        )

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save_or_stop(self) -> None:
        """Save a checkpoint where one is due, and end as ``Preempted`` where ``stop`` asks for it."""
        folder, every, stopped = self.member.checkpoints, self.member.train.checkpoint_steps, self.member.stop()
        if folder is not None and (stopped or (every is not None and self.steps_done % every == 0)):
            self.save_checkpoint(folder)
        if stopped:
            at_step = f"at step {self.steps_done} of {len(self.steps)}"
            self.outcome = Preempted(f"saved {at_step}" if folder else f"{at_step}; nothing was saved")

    def save_checkpoint(self, checkpoints: Path) -> None:
        folder = checkpoint_folder(checkpoints, self.steps_done)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(export_tensors(self.member.adapter), folder / ADAPTER_FILE)
        states = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        torch.save(states, folder / STATE_FILE)
        seal_checkpoint(checkpoints, self.steps_done, dataclasses.asdict(self.progress))

    def resume_from_checkpoint(self, checkpoints: Path) -> None:
        """Continue from the last valid checkpoint of a pack; without one the training starts at step 0.

        A checkpoint of TRL's training is ignored: its dropout masks were drawn differently.
        """
        checkpoint = find_last_valid(checkpoints)
        if checkpoint is not None and not (checkpoint.folder / STATE_FILE).is_file():
            checkpoint = None
        prune_checkpoints(checkpoints, checkpoint.step if checkpoint else 0)
        if checkpoint is None:
            return
        tensors = load_file(checkpoint.folder / ADAPTER_FILE, device=self.device.type)
        same_adapter = tensors.keys() == export_tensors(self.member.adapter).keys()
        if not same_adapter or checkpoint.step >= len(self.steps):
            raise RuntimeError(f"{checkpoint.folder.name} belongs to another training")
        import_tensors(self.member.adapter, tensors)
        states = torch.load(checkpoint.folder / STATE_FILE, map_location=self.device.type, weights_only=True)
        self.optimizer.load_state_dict(states["optimizer"])
        self.schedule.load_state_dict(states["schedule"])
        self.progress = Progress(**checkpoint.progress)
        self.steps_done = self.resumed_from = checkpoint.step


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one member's next step that are in one forward."""

    training: MemberTraining
    rows: list[Example]

    @property
    def prefix_tokens(self) -> int:
        """Tokens at the start of all rows that are computed once for all of them."""
        return self.training.prefix_tokens if len(self.rows) > 1 else 0

    @property
    def tokens(self) -> int:
        """Tokens that the forward computes for these rows."""
        return self.prefix_tokens + sum(len(row.input_ids) - self.prefix_tokens for row in self.rows)

    @property
    def dropout_key(self) -> int:
        """A number that selects the dropout masks: it differs for every micro-batch of a training.

        It depends on the step and on the first row alone, so that it is the same in any pack and after a resume.
        """
        rows = self.training.member.rows
        first = next(index for index, row in enumerate(rows) if row is self.rows[0])
        return self.training.steps_done * len(rows) + first

    def make_member_rows(self) -> MemberRows:
        """The rows for a ragged batch; their weight makes a step's loss the mean over its labelled tokens."""
        return MemberRows(self.rows, self.prefix_tokens, 1 / self.training.count_step_labels())
