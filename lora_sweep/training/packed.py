"""Train the adapters of a pack on one base model, each as if TRL's SFTTrainer trained it alone.

The loop is ours; transformers' Trainer makes the order of rows, the optimizer and the schedule. ``find_trl_reason``
names the settings that this loop does not support: ``train_with_trl`` trains those. This module knows nothing of the
runs folder, of prompts or of scores.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lora_sweep.config.schema import Lora, Train
from lora_sweep.data.prompts import Example
from lora_sweep.model.device import Device
from lora_sweep.multi_lora.attention import ATTENTION_NAME
from lora_sweep.multi_lora.layout import explain_short_window
from lora_sweep.multi_lora.linear import attach_pack
from lora_sweep.multi_lora.rms_norm import fuse_norms
from lora_sweep.multi_lora.segments import AdapterMap
from lora_sweep.training.member import MemberTraining, PackMember
from lora_sweep.training.pack_step import PackStep, find_max_tokens
from lora_sweep.training.progress import TrainingOutcome
from lora_sweep.training.step_modes import MemberThreads, StepMode, StepModeSelector, list_step_modes

# Optimizers that update each number independently of the tensor that it is in: a whole adapter is one tensor here.
ELEMENTWISE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")
SFT_KEYS = (  # keys of SFTConfig that transformers' Trainer obeys when it makes order, optimizer and schedule
    "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs", "dataloader_drop_last",
)  # fmt: skip


def find_trl_reason(train: Train, lora: Lora, base: PreTrainedModel, rows: Sequence[Example]) -> str | None:
    """The reason why TRL must do a training; None where this loop gives the same adapter."""
    other_keys = [key for key in train.sft if key not in SFT_KEYS]
    longest_row = max(len(row.input_ids) for row in rows)
    dropout = [module.p for module in base.modules() if isinstance(module, torch.nn.Dropout)]
    dropout += [getattr(base.config, name, None) or 0.0 for name in ("attention_dropout", "attn_pdrop")]
    reasons = {
        "lora.use_dora": lora.use_dora,
        f"lora.bias={lora.bias}": lora.bias != "none",
        f"train.optim={train.optim}": train.optim not in ELEMENTWISE_OPTIMIZERS,
        f"train.lr_scheduler_type={train.lr_scheduler_type}": train.lr_scheduler_type == "reduce_lr_on_plateau",
        f"train.sft.{other_keys[0] if other_keys else ''}": bool(other_keys),
        "a base model with dropout": any(dropout),
    }
    return next((reason for reason, holds in reasons.items() if holds), explain_short_window(base, longest_row))


def train_pack(
    base: PreTrainedModel,
    members: Sequence[PackMember],
    device: Device,
    scratch: Path,
    step_mode: StepMode | None = None,
) -> list[TrainingOutcome]:
    """Train the adapters of ``members`` in place, from their last checkpoints on.

    One step of the pack is one step of each member that has steps left. A forward holds at most
    :func:`find_max_tokens` tokens; in ``parallel`` mode each thread has one such forward.

    Args:
        scratch: a folder for the Trainer's own files.
        step_mode: how steps of several members are taken; None: measure in the first steps, and use the faster mode.

    Returns:
        How each member's training ended, in the order of ``members``.
    """
    trainings = [MemberTraining(member, device, scratch) for member in members]
    max_tokens = find_max_tokens(base, trainings, device)
    modes = [step_mode] if step_mode and len(members) > 1 else list_step_modes(base, len(members), device)
    selector = StepModeSelector(modes)
    with prepare_base(base, members) as adapter_map, MemberThreads() as threads:
        step = PackStep(base, adapter_map, trainings, device, max_tokens)
        while active := [training for training in trainings if training.outcome is None]:
            with selector.time_step(sum(training.count_step_tokens() for training in active)) as mode:
                if mode == "batched":
                    step.step_batched(active)
                elif mode == "parallel":
                    step.step_parallel(active, threads, once=selector.is_measuring)
                else:
                    step.step_sequential(active)
    return [training.outcome for training in trainings if training.outcome is not None]


@contextlib.contextmanager
def prepare_base(base: PreTrainedModel, members: Sequence[PackMember]) -> Iterator[AdapterMap]:
    """Within this context ``base`` has the members' adapters, our attention, and gradient checkpointing where asked.

    Yields:
        The adapter map, in which each forward says how many tokens belong to which member.
    """
    attention = base.config._attn_implementation
    checkpointing = any(member.train.gradient_checkpointing for member in members)
    with fuse_norms(base), attach_pack(base, [member.adapter for member in members]) as adapter_map:
        base.set_attn_implementation(ATTENTION_NAME)
        base.enable_input_require_grads()
        if checkpointing:
            base.train()  # transformers checkpoints in train mode only
            base.activation_checkpointing_enable({"use_reentrant": False})
        try:
            yield adapter_map
        finally:
            if checkpointing:
                base.activation_checkpointing_disable()
                base.eval()
            base.disable_input_require_grads()
            base.set_attn_implementation(attention)
