"""The order of rows, the optimizer and the learning rate schedule of one training, made by transformers' Trainer."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer, set_seed

from lora_sweep.config.schema import Train
from lora_sweep.data.prompts import Example
from lora_sweep.model.device import Device
from lora_sweep.model.sft_settings import make_sft_config


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step.

    Attributes:
        epoch: how many epochs are done when the step ends.
        micro_batches: for each micro-batch the indices of its rows.
    """

    epoch: float
    micro_batches: list[list[int]]

    @property
    def row_indices(self) -> list[int]:
        return [index for micro_batch in self.micro_batches for index in micro_batch]


@dataclass(frozen=True)
class StepPlan:
    """All steps of a training, and the optimizer and schedule that take them."""

    steps: list[PlannedStep]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


class OneParameterModel(torch.nn.Module):
    """The model that transformers' Trainer is given: all numbers of one adapter as a single parameter."""

    def __init__(self, adapter: torch.nn.Parameter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self) -> None:
        """Never called: the Trainer does not train here."""


def make_step_plan(
    parameter: torch.nn.Parameter, rows: list[Example], train: Train, seed: int, device: Device, scratch: Path
) -> StepPlan:
    """Plan the steps as TRL's SFTTrainer would take them with the same settings and seed.

    Args:
        parameter: the adapter's numbers, flat.
        scratch: a folder for the Trainer's own files.
    """
    items = [{"index": index, "input_ids": row.input_ids} for index, row in enumerate(rows)]
    settings = make_sft_config(train, seed, device, scratch)
    with torch.random.fork_rng():
        trainer = Trainer(
            model=OneParameterModel(parameter),
            args=dataclasses.replace(settings, remove_unused_columns=False),
            train_dataset=items,  # a list has all that a dataset needs
            data_collator=lambda batch: [item["index"] for item in batch],  # type: ignore[arg-type, return-value]
        )
        set_seed(seed)
        loader = trainer.get_train_dataloader()
        steps_an_epoch = math.ceil(len(loader) / train.gradient_accumulation_steps)
        step_count = train.max_steps or math.ceil(train.num_train_epochs * steps_an_epoch)
        steps: list[PlannedStep] = []
        for epoch in range(math.ceil(step_count / steps_an_epoch)):
            loader.set_epoch(epoch)  # type: ignore[attr-defined]
            batches = list(loader)
            for start in range(0, len(batches), train.gradient_accumulation_steps):
                micro_batches = batches[start : start + train.gradient_accumulation_steps]
                steps.append(PlannedStep(epoch + (start + len(micro_batches)) / len(batches), micro_batches))
    trainer.create_optimizer_and_scheduler(step_count)
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    return StepPlan(steps[:step_count], trainer.optimizer, trainer.lr_scheduler)
