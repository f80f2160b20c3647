"""Base and rows to adapters, several at once: each member of a pack as if it trained alone with TRL's SFTTrainer.

The loop is ours; the order of rows, the optimizer and the schedule are made by transformers' Trainer. What it cannot
do, :func:`find_trl_reason` says, and ``train_with_trl`` does. Knows nothing of a runs folder, of prompts or of scores.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, set_seed
from transformers.pytorch_utils import Conv1D

from lora_sweep.config.schema import Lora, Train
from lora_sweep.data.prompts import Example
from lora_sweep.errors import Diverged, Preempted
from lora_sweep.model.device import Device, read_free_memory, read_gpu_utilization, wait_for_device
from lora_sweep.model.sft_settings import make_sft_config
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.attention import ATTENTION_NAME, use_layout
from lora_sweep.multi_lora.head_loss import compute_head_loss
from lora_sweep.multi_lora.layout import MemberRows, concatenate_rows, explain_short_window, measure_common_prefix
from lora_sweep.multi_lora.linear import attach_pack
from lora_sweep.multi_lora.peft_format import export_tensors, import_tensors
from lora_sweep.multi_lora.rms_norm import fuse_norms
from lora_sweep.multi_lora.segments import AdapterMap
from lora_sweep.runs.checkpoints import folder_of, last_valid, prune, seal
from lora_sweep.training.single import Progress, Trained
from lora_sweep.training.step_modes import MEMBER_THREADS, MemberThreads, StepMode, StepModeSelector, list_step_modes

# Optimizers that treat each number by itself, whatever tensor it is in.
ELEMENTWISE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")
SFT_KEYS = (  # of SFTConfig, which transformers' Trainer obeys when it makes order, optimizer and schedule
    "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs", "dataloader_drop_last",
)  # fmt: skip
ACTIVATION_MEMORY_SHARE = 0.5  # of the free memory, for the activations of a forward for several members
STATE_FILE = "packed.pt"  # a checkpoint of this loop


def find_trl_reason(train: Train, lora: Lora, base: Any, rows: Sequence[Example]) -> str | None:
    """Why a training must take TRL's own way; None where this one gives the same."""
    further = [key for key in train.sft if key not in SFT_KEYS]
    longest = max(len(row.input_ids) for row in rows)
    dropout = [module.p for module in base.modules() if isinstance(module, torch.nn.Dropout)]
    dropout += [getattr(base.config, name, None) or 0.0 for name in ("attention_dropout", "attn_pdrop")]
    reasons = {
        "lora.use_dora": lora.use_dora,
        f"lora.bias={lora.bias}": lora.bias != "none",
        f"train.optim={train.optim}": train.optim not in ELEMENTWISE_OPTIMIZERS,
        f"train.lr_scheduler_type={train.lr_scheduler_type}": train.lr_scheduler_type == "reduce_lr_on_plateau",
        f"train.sft.{further[0] if further else ''}": bool(further),
        "a base with dropout of its own": any(dropout),
    }
    return next((reason for reason, holds in reasons.items() if holds), explain_short_window(base, longest))


@dataclass
class PackMember:
    """A training of a pack. The arguments are those of ``train_with_trl``."""

    adapter: Adapter
    rows: list[Example]
    train: Train
    seed: int
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, steps, values: None
    checkpoints: Path | None = None
    stop: Callable[[], bool] = lambda: False


def train_pack(
    base: Any, members: Sequence[PackMember], device: Device, scratch: Path, way: StepMode | None = None
) -> list[Trained | Diverged | Preempted]:
    """Train the adapters of ``members`` in place, from their last checkpoints on, and say how each ended.

    One step of the pack is one step of each member that has steps left. A forward holds at most
    :func:`find_max_tokens` tokens, in each of :data:`MEMBER_THREADS` threads where members train in parallel.

    Args:
        scratch: a folder for the trainer's own files.
        way: how; None: the faster of :func:`ways`, as the first steps say.
    """
    runs = [MemberTraining(member, device, scratch) for member in members]
    checkpointing = any(member.train.gradient_checkpointing for member in members)
    attention = base.config._attn_implementation
    most = find_max_tokens(base, runs, device)
    pace = StepModeSelector(list_step_modes(base, len(runs), device) if way is None or len(runs) < 2 else [way])
    lanes = MemberThreads()

    def forwards(alive: Sequence[MemberTraining], most: int = 0, share: float = 1.0) -> None:
        for group in group_micro_batches(alive, most):
            forward_backward(base, adapter_map, runs, group, device, share)

    with fuse_norms(base), attach_pack(base, [member.adapter for member in members]) as adapter_map:
        base.set_attn_implementation(ATTENTION_NAME)
        base.enable_input_require_grads()
        if checkpointing:
            base.train()
            base.activation_checkpointing_enable({"use_reentrant": False})
        try:
            while alive := [run for run in runs if run.outcome is None]:
                with pace.step(sum(run.step_tokens() for run in alive)) as now:
                    if now == "parallel" and len(alive) >= MEMBER_THREADS:  # who is left over has all cores
                        many = len(alive) // MEMBER_THREADS * MEMBER_THREADS if pace.measures else len(alive)
                        lanes.steps(alive[:many], lambda run, share: forwards([run], share=share), once=pace.measures)
                        alive = alive[many:]
                    forwards(alive, most if now == "batched" else 0)
                    if now == "batched" and not all(run.is_finite() for run in alive):  # a NaN of one can be in all
                        for run in alive:
                            run.forget()
                        forwards(alive)
                    for run in alive:
                        run.take_step()
        finally:
            lanes.close()
            if checkpointing:
                base.activation_checkpointing_disable()
                base.eval()
            base.disable_input_require_grads()
            base.set_attn_implementation(attention)
    return [run.outcome for run in runs if run.outcome is not None]


class MemberTraining:
    """One member under way."""

    def __init__(self, member: PackMember, device: Device, scratch: Path) -> None:
        self.member, self.device = member, device
        self.longest = max(len(row.input_ids) for row in member.rows)
        self.prefix = measure_common_prefix(member.rows)
        self.outcome: Trained | Diverged | Preempted | None = None
        self.at = 0
        self.loss: torch.Tensor = torch.zeros((), device=device.type)
        member.adapter.set_dtype(device.compute_dtype)
        member.adapter.allocate_gradient()
        self.parameter = torch.nn.Parameter(member.adapter.numbers)
        self.parameter.grad = member.adapter.gradient
        self.order, self.optimizer, self.schedule = self.plan(scratch)
        self.progress = Progress()
        self.resumed_from: int | None = None
        self.samples: list[float] = []
        if member.checkpoints is not None:
            self.go_on(member.checkpoints)
        self.began = self.progress.train_seconds, self.progress.tokens
        if self.at == len(self.order):
            self.end()

    def plan(self, scratch: Path) -> tuple[list[tuple[float, list[list[int]]]], Any, Any]:
        """The epoch that each step ends in and its micro-batches of rows' numbers; the optimizer and the schedule."""
        train = self.member.train
        places = [{"place": place, "input_ids": row.input_ids} for place, row in enumerate(self.member.rows)]
        with torch.random.fork_rng():
            trainer = Trainer(
                model=OneParameterModel(self.parameter),
                args=dataclasses.replace(
                    make_sft_config(train, self.member.seed, self.device, scratch), remove_unused_columns=False
                ),
                train_dataset=places,  # a list has all that a dataset needs
                data_collator=lambda batch: [item["place"] for item in batch],  # type: ignore[arg-type, return-value]
            )
            set_seed(self.member.seed)
            batches = trainer.get_train_dataloader()
            steps_an_epoch = math.ceil(len(batches) / train.gradient_accumulation_steps)
            steps = train.max_steps or math.ceil(train.num_train_epochs * steps_an_epoch)
            order: list[tuple[float, list[list[int]]]] = []
            for epoch in range(math.ceil(steps / steps_an_epoch)):
                batches.set_epoch(epoch)  # type: ignore[attr-defined]
                found = list(batches)
                for begin in range(0, len(found), train.gradient_accumulation_steps):
                    parts = found[begin : begin + train.gradient_accumulation_steps]
                    order.append((epoch + (begin + len(parts)) / len(found), parts))
        trainer.create_optimizer_and_scheduler(steps)
        return order[:steps], trainer.optimizer, trainer.lr_scheduler

    def micro_batches(self) -> list[list[Example]]:
        """The rows of the next step, in parts of like length."""
        _, parts = self.order[self.at]
        rows = [self.member.rows[place] for part in parts for place in part]
        if len(parts) > 1:
            rows.sort(key=lambda row: len(row.input_ids))
        size = self.member.train.per_device_train_batch_size
        return [rows[begin : begin + size] for begin in range(0, len(rows), size)]

    def drawing(self, rows: list[Example]) -> int:
        """Names the dropout of a micro-batch: the step, and the rows' first in it."""
        first = next(place for place, row in enumerate(self.member.rows) if row is rows[0])
        return self.at * len(self.member.rows) + first

    def shared(self, rows: list[Example]) -> int:
        """Tokens of a micro-batch's prefix that are computed once."""
        return self.prefix if len(rows) > 1 else 0

    def block(self, rows: list[Example]) -> MemberRows:
        return MemberRows(rows, self.shared(rows), 1 / self.step_labels())

    def step_labels(self) -> int:
        """Labelled tokens of the next step, of which its loss is the mean."""
        on = self.member.train.loss_on
        _, parts = self.order[self.at]
        rows = (self.member.rows[place] for part in parts for place in part)
        return sum(len(row.input_ids) - (1 if on == "all" else max(1, row.prompt_length)) for row in rows)

    def step_tokens(self) -> int:
        _, parts = self.order[self.at]
        return sum(len(self.member.rows[place].input_ids) for part in parts for place in part)

    def take_step(self) -> None:
        """Clip, move, log; after this the gradient is zero again."""
        begun, train = time.perf_counter(), self.member.train
        norm = torch.nn.utils.clip_grad_norm_([self.parameter], train.max_grad_norm or math.inf)
        values = {
            "loss": float(self.loss),
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            "grad_norm": float(norm),
            "epoch": self.order[self.at][0],
        }
        self.progress.tokens += self.step_tokens()
        self.at += 1
        for key in ("loss", "grad_norm"):
            if not math.isfinite(values[key]):
                self.outcome = Diverged(f"{key} is {values[key]} at step {self.at} of {len(self.order)}")
                return
        self.optimizer.step()
        self.schedule.step()
        self.member.adapter.update_copy()
        self.forget()
        self.progress.losses.append({"step": self.at, **values})
        self.progress.train_seconds += time.perf_counter() - begun
        self.tell(values)
        self.end() if self.at == len(self.order) else self.keep()

    @property
    def left(self) -> int:
        """Steps that it has yet to make."""
        return len(self.order) - self.at

    def is_finite(self) -> bool:
        """Whether the loss and the gradient of the next step are numbers."""
        assert self.member.adapter.gradient is not None
        return bool(torch.isfinite(self.loss) & torch.isfinite(self.member.adapter.gradient).all())

    def forget(self) -> None:
        """The next step's loss and gradient."""
        assert self.member.adapter.gradient is not None
        self.member.adapter.gradient.zero_()
        self.loss = torch.zeros_like(self.loss)

    def tell(self, values: dict[str, float]) -> None:
        used = read_gpu_utilization(self.device)
        self.samples += [] if used is None else [used]
        seconds, tokens = self.progress.train_seconds - self.began[0], self.progress.tokens - self.began[1]
        self.member.on_step(self.at, len(self.order), {**values, "tokens_per_second": tokens / seconds})

    def end(self) -> None:
        used = sum(self.samples) / len(self.samples) if self.samples else None
        done = self.progress
        self.outcome = Trained(self.at, done.train_seconds, done.tokens, done.losses, used, self.resumed_from)

    def keep(self) -> None:
        """Save where it is time to, and end where that was asked for."""
        folder, every, stopped = self.member.checkpoints, self.member.train.checkpoint_steps, self.member.stop()
        if folder is not None and (stopped or (every is not None and self.at % every == 0)):
            self.save(folder)
        if stopped:
            saved = "saved at step" if folder else "at step"
            self.outcome = Preempted(f"{saved} {self.at} of {len(self.order)}{'' if folder else '; nothing was saved'}")

    def save(self, checkpoints: Path) -> None:
        folder = folder_of(checkpoints, self.at)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(export_tensors(self.member.adapter), folder / "adapter_model.safetensors")
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}, folder / STATE_FILE
        )
        seal(checkpoints, self.at, dataclasses.asdict(self.progress))

    def go_on(self, checkpoints: Path) -> None:
        """Where the last whole checkpoint of this loop is, if there is one."""
        found = last_valid(checkpoints)
        if found is not None and not (found.folder / STATE_FILE).is_file():
            found = None  # one of TRL's way: its dropout was another
        prune(checkpoints, found.step if found else 0)
        if found is None:
            return
        tensors = load_file(found.folder / "adapter_model.safetensors", device=self.device.type)
        if tensors.keys() != export_tensors(self.member.adapter).keys() or found.step >= len(self.order):
            raise RuntimeError(f"{found.folder.name} is of another training")
        import_tensors(self.member.adapter, tensors)
        states = torch.load(found.folder / STATE_FILE, map_location=self.device.type, weights_only=True)
        self.optimizer.load_state_dict(states["optimizer"])
        self.schedule.load_state_dict(states["schedule"])
        self.progress, self.at = Progress(**found.progress), found.step
        self.resumed_from = found.step


class OneParameterModel(torch.nn.Module):
    """A model of one parameter, for which transformers' Trainer makes an optimizer."""

    def __init__(self, adapter: torch.nn.Parameter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self) -> None:
        """Never called."""


# --- what members do together -------------------------------------------------------------------------------------


def find_max_tokens(base: Any, runs: Sequence[MemberTraining], device: Device) -> int:
    """The most tokens of a forward for several members.

    On a CPU those of the largest micro-batch, so that a pack needs no more than a training alone. Elsewhere as many as
    half of the free memory holds: there a call takes as long for few rows as for many. A token's activations are
    taken to be the inputs and outputs of all linear layers, twice.
    """
    least = max(run.longest * run.member.train.per_device_train_batch_size for run in runs)
    free = None if device.type == "cpu" else read_free_memory(device)
    if free is None:
        return least
    layers = [module for module in base.base_model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    numbers = 2 * sum(
        sum(layer.weight.shape) if isinstance(layer, Conv1D) else layer.in_features + layer.out_features
        for layer in layers
    )
    return max(least, int(ACTIVATION_MEMORY_SHARE * free / max(1, numbers * device.compute_bytes)))


def group_micro_batches(alive: Sequence[MemberTraining], most: int) -> list[list[tuple[MemberTraining, list[Example]]]]:
    """The next step's micro-batches of all members, as many of different members in a group as it may hold.

    Args:
        most: tokens of a group; 0: one micro-batch each.
    """
    groups: list[list[tuple[MemberTraining, list[Example]]]] = []
    waiting = [(run, rows) for run in alive for rows in run.micro_batches()]
    used = 0
    for run, rows in waiting:
        shared = run.shared(rows)
        tokens = shared + sum(len(row.input_ids) - shared for row in rows)
        if groups and used + tokens <= most and all(other is not run for other, _ in groups[-1]):
            groups[-1].append((run, rows))
        else:
            groups.append([(run, rows)])
            used = 0
        used += tokens
    return groups


def forward_backward(
    base: Any,
    adapter_map: AdapterMap,
    runs: Sequence[MemberTraining],
    group: list[tuple[MemberTraining, list[Example]]],
    device: Device,
    share: float = 1.0,
) -> None:
    """Add a micro-batch's gradients and losses to those of its members' steps.

    Args:
        share: of the time that passes, what is this group's.
    """
    begun, adapter_map = time.perf_counter(), adapter_map.select_thread()
    owners = [next(place for place, run in enumerate(runs) if run is owner) for owner, _ in group]
    batch = concatenate_rows(
        [run.block(rows) for run, rows in group],
        [run.member.train.loss_on for run, _ in group],
        device.type,
        device.compute_dtype,
    )
    adapter_map.forget_matrices()
    adapter_map.segment_sizes, adapter_map.draw_numbers = [0] * len(runs), [0] * len(runs)
    for place, (run, rows), size in zip(owners, group, batch.segment_sizes, strict=True):
        adapter_map.segment_sizes[place] = size
        adapter_map.draw_numbers[place] = run.drawing(rows)
    with use_layout(batch):
        hidden = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        states = hidden.last_hidden_state[0].index_select(0, batch.logit_positions)
        tokens, adapter_map.segment_sizes = adapter_map.segment_sizes, [0] * len(runs)
        for place, count in zip(owners, batch.target_counts, strict=True):
            adapter_map.segment_sizes[place] = count
        loss, each = compute_head_loss(states, base.get_output_embeddings(), batch.target_ids, batch.target_weights)
        adapter_map.segment_sizes = tokens  # layers may be computed again on the way back
        torch.autograd.backward(loss)
    adapter_map.forget_input()
    wait_for_device(device)  # else its time would be another's
    losses = torch.zeros(len(group), device=device.type).index_add_(
        0, batch.target_members, each * batch.target_weights
    )
    seconds = share * (time.perf_counter() - begun)
    for number, (run, _) in enumerate(group):
        run.loss = run.loss + losses[number]
        run.progress.train_seconds += seconds * batch.segment_sizes[number] / sum(batch.segment_sizes)
