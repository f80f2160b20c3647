"""Turns the settings of a training into TRL's SFTConfig."""

import dataclasses
from pathlib import Path

import torch
from trl import SFTConfig

from lora_sweep.config.schema import Train
from lora_sweep.errors import Refused, find_nearest
from lora_sweep.model.device import Device
from lora_sweep.model.load import take_first_line


def make_sft_config(train: Train, seed: int, device: Device, scratch: Path) -> SFTConfig:
    """TRL's SFTConfig for ``train``. The keys of ``train.sft`` are passed on unchanged.

    Args:
        scratch: TRL's output folder.

    Raises:
        Refused: a key in ``train.sft`` is unknown, or TRL refuses a value.
    """
    check_sft_keys(train)
    try:
        return SFTConfig(
            output_dir=str(scratch),
            num_train_epochs=train.num_train_epochs,
            max_steps=train.max_steps or -1,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.lr_scheduler_type,
            warmup_steps=train.warmup_steps,
            per_device_train_batch_size=train.per_device_train_batch_size,
            gradient_accumulation_steps=train.gradient_accumulation_steps,
            activation_checkpointing=train.gradient_checkpointing,
            max_length=train.max_length,
            max_grad_norm=train.max_grad_norm,
            weight_decay=train.weight_decay,
            optim=train.optim,
            train_sampling_strategy=train.train_sampling_strategy,
            seed=seed,
            bf16=device.compute_dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
            logging_steps=1,
            logging_nan_inf_filter=False,  # the default logs 0.0 for NaN
            save_strategy="no",  # CheckpointCallback decides when; transformers would also save the last step
            report_to=[],
            disable_tqdm=True,
            **train.sft,
        )
    except (ValueError, TypeError) as error:
        raise Refused("train", f"is refused by TRL's SFTConfig: {take_first_line(error)}") from error


def check_sft_keys(train: Train) -> None:
    """Refuse a key in ``train.sft`` that TRL's SFTConfig does not have."""
    keys = {field.name for field in dataclasses.fields(SFTConfig)}
    for key in train.sft:
        if key not in keys:
            suggestion = find_nearest(key, keys)
            raise Refused(f"train.sft.{key}", "is no key of TRL's SFTConfig", [suggestion] if suggestion else [])
