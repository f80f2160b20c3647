"""Base and rows to adapter: one fine-tuning with TRL's SFTTrainer. Knows nothing of folders, prompts or scores."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from lora_sweep.config import Lora, Train
from lora_sweep.device import Device, gpu_utilization, scores_every_position
from lora_sweep.errors import Diverged, Refused, nearest
from lora_sweep.model import lora_config, response_logits
from lora_sweep.prompts import IGNORED, Example


@dataclass(frozen=True)
class Trained:
    """What one fine-tuning did. ``tokens`` are those of the rows it saw, without padding."""

    steps: int
    train_seconds: float
    tokens: int
    losses: list[dict[str, float]]
    gpu_utilization_percent: float | None


def attach_adapter(base: Any, lora: Lora, target_modules: list[str], seed: int) -> PeftModel:
    """A fresh adapter on ``base``; the same seed gives the same weights.

    SFTTrainer seeds only after PEFT has drawn the weights when it is given a PEFT model, so seed first.
    """
    set_seed(seed)
    model: PeftModel = get_peft_model(base, lora_config(lora, target_modules))
    return model


def finetune(
    model: PeftModel,
    rows: list[Example],
    tokenizer: Any,
    train: Train,
    seed: int,
    device: Device,
    scratch: Path,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, steps, values: None,
) -> Trained:
    """Train the adapter of ``model`` on ``rows``, in place.

    Args:
        scratch: a folder for the trainer's own files.
        on_step: called after every optimizer step with the step, the number of planned steps, and its
            loss, learning_rate, grad_norm and epoch.

    Raises:
        Diverged: a loss or gradient norm that is not finite, with its step.
        Refused: ``train.sft`` has a key or value that SFTConfig does not take.
    """
    drawn = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    watch = Watch(on_step, device)
    with forward_restored(model.get_base_model()), head_adapter_allowed(model):
        trainer = ResponseTrainer(
            model=model,
            args=sft_config(train, seed, device, scratch),
            train_dataset=as_dataset(rows, train.loss_on),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        trainer.device = device
        trainer.remove_callback(PrinterCallback)  # prints every step; on_step tells whoever wants to know
        for name, parameter in model.named_parameters():
            # SFTTrainer rounds the adapter to bf16 on a quantized base: there a rate of 1e-5 moves most weights by
            # nothing. In fp32 every update counts, and autocast multiplies in the compute dtype all the same.
            if name in drawn:
                parameter.data = drawn[name]
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    if trainer.state.global_step != trainer.state.max_steps:
        raise RuntimeError(f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
    return Trained(trainer.state.global_step, seconds, trainer.tokens, watch.losses, watch.utilization())


def as_dataset(rows: list[Example], loss_on: str) -> Dataset:
    """TRL's pre-tokenized form: it neither adds tokens to such rows nor drops any."""
    return Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels(loss_on)} for row in rows])


def sft_config(train: Train, seed: int, device: Device, scratch: Path) -> SFTConfig:
    """TRL's settings for ``train``; keys of ``train.sft`` go through as they are."""
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    for key in train.sft:
        if key not in known:
            raise Refused(f"train.sft.{key}", "is no key of TRL's SFTConfig", [n] if (n := nearest(key, known)) else [])
    half = device.compute_dtype == torch.bfloat16
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
            bf16=half,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
            logging_steps=1,
            logging_nan_inf_filter=False,  # the default logs 0.0 for NaN
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **train.sft,
        )
    except (ValueError, TypeError) as error:
        raise Refused("train", f"is refused by TRL's SFTConfig: {str(error).splitlines()[0]}") from error


class ResponseTrainer(SFTTrainer):
    """SFTTrainer with the same loss from fewer products, and with adapters on the output head.

    TRL 1.16 multiplies hidden states by ``lm_head.weight`` itself: all positions on a CPU, and never an adapter's
    part. Here the model's own forward gives logits, from the first labelled position of the batch on.
    """

    device: Device
    tokens = 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.tokens += int(inputs["attention_mask"].sum())
        head = model.get_base_model().get_output_embeddings()
        if not scores_every_position(self.device) and not isinstance(head, BaseTunerLayer):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        labels = inputs["labels"]
        logits, wanted = response_logits(model, inputs["input_ids"], inputs["attention_mask"], labels)
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        count = (wanted != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return loss / count


class Watch(TrainerCallback):
    """Keeps the loss curve, reports each step, and ends a training whose loss or gradient is not finite."""

    def __init__(self, on_step: Callable[[int, int, dict[str, float]], None], device: Device) -> None:
        self.on_step, self.device = on_step, device
        self.losses: list[dict[str, float]] = []
        self.samples: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        values: dict[str, float] = {
            key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm", "epoch") if key in logs
        }
        for key in ("loss", "grad_norm"):
            if not math.isfinite(values.get(key, 0.0)):
                raise Diverged(f"{key} is {values[key]} at step {state.global_step} of {state.max_steps}")
        self.losses.append({"step": state.global_step, **values})
        used = gpu_utilization(self.device)
        self.samples += [] if used is None else [used]
        self.on_step(state.global_step, state.max_steps, values)

    def utilization(self) -> float | None:
        return sum(self.samples) / len(self.samples) if self.samples else None


@contextlib.contextmanager
def forward_restored(base: Any) -> Iterator[None]:
    """Undo TRL's patch of the base's forward, which would otherwise nest deeper with every trial on one base."""
    own = base.__dict__.get("forward")
    try:
        yield
    finally:
        base.__dict__.pop("forward", None)
        if own is not None:
            base.forward = own


@contextlib.contextmanager
def head_adapter_allowed(model: PeftModel) -> Iterator[None]:
    """Let SFTTrainer take an adapter on the output head, which its own loss would never train.

    Its constructor refuses one by looking at ``get_output_embeddings``; our loss goes through the adapted head.
    """
    wrapped: Any = model
    head = wrapped.get_base_model().get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    wrapped.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del wrapped.get_output_embeddings
