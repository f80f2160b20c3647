"""Base and rows to adapter: one fine-tuning with TRL's SFTTrainer, which can be killed at any step and go on later.

Knows nothing of a runs folder, of prompts or of scores.
"""

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
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from lora_sweep.config.schema import Train
from lora_sweep.data.prompts import IGNORED_LABEL, Example
from lora_sweep.errors import Diverged, Preempted
from lora_sweep.model.device import Device, read_gpu_utilization, scores_every_position
from lora_sweep.model.load import compute_response_logits
from lora_sweep.model.sft_settings import make_sft_config
from lora_sweep.runs.checkpoints import last_valid, prune, seal


@dataclass(frozen=True)
class Trained:
    """What one fine-tuning did, in all its attempts together.

    Attributes:
        train_seconds: of the steps that count; what an attempt did after its last checkpoint is lost.
        tokens: those of the rows it saw, without padding.
        gpu_utilization_percent: of the last attempt.
        resumed_from: the step that the last attempt went on from.
    """

    steps: int
    train_seconds: float
    tokens: int
    losses: list[dict[str, float]]
    gpu_utilization_percent: float | None
    resumed_from: int | None = None

    def numbers(self) -> dict[str, Any]:
        """The training's part of result.json; ``train_loss`` is the mean of the last tenth of the steps."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return {
            "steps": self.steps,
            "resumed_from": self.resumed_from,
            "train_loss": sum(values["loss"] for values in tail) / len(tail),
            "train_seconds": self.train_seconds,
            "tokens_seen": self.tokens,
            "tokens_per_second": self.tokens / self.train_seconds,
            "gpu_utilization_percent": self.gpu_utilization_percent,
        }


def train_with_trl(
    model: PeftModel,
    rows: list[Example],
    tokenizer: Any,
    train: Train,
    seed: int,
    device: Device,
    scratch: Path,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, steps, values: None,
    checkpoints: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train the adapter of ``model`` on ``rows``, in place; from the last checkpoint on, where there is one.

    Args:
        scratch: a folder for the trainer's own files.
        on_step: called after every optimizer step with the step, the number of planned steps, and its
            loss, learning_rate, grad_norm and epoch, and the tokens_per_second since the start.
        checkpoints: a folder that outlives the process; None: nothing is saved.
        stop: asked after every optimizer step whether to save and end.

    Raises:
        Diverged: a loss or gradient norm that is not finite, with its step.
        Preempted: ``stop`` said so before the last step.
        Refused: ``train.sft`` has a key or value that SFTConfig does not take.
    """
    drawn = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    resumed = None if checkpoints is None else last_valid(checkpoints)
    if resumed is not None and not (resumed.folder / "trainer_state.json").is_file():
        resumed = None  # one of ``pack_training``
    if checkpoints:
        prune(checkpoints, resumed.step if resumed else 0)  # torn ones: the trainer would write into their folders
    progress = Progress(**resumed.progress) if resumed else Progress()
    watch = StepCallback(progress, on_step, device)
    keeper = CheckpointCallback(progress, train.checkpoint_steps, checkpoints, stop)
    with restore_forward(model.get_base_model()), allow_head_adapter(model):
        trainer = ResponseTrainer(
            model=model,
            args=make_sft_config(train, seed, device, checkpoints or scratch),
            train_dataset=make_dataset(rows, train.loss_on),
            processing_class=tokenizer,
            callbacks=[watch, keeper],
        )
        trainer.device, trainer.progress = device, progress
        trainer.remove_callback(PrinterCallback)  # prints every step; on_step tells whoever wants to know
        for name, parameter in model.named_parameters():
            # SFTTrainer rounds the adapter to bf16 on a quantized base: there a rate of 1e-5 moves most weights by
            # nothing. In fp32 every update counts, and autocast multiplies in the compute dtype all the same.
            if name in drawn:
                parameter.data = drawn[name]
        with keeper.running():
            trainer.train(resume_from_checkpoint=str(resumed.folder) if resumed else None)
    done, steps = trainer.state.global_step, trainer.state.max_steps
    if keeper.stopped:
        raise Preempted(f"saved at step {done} of {steps}" if checkpoints else f"at step {done}; nothing was saved")
    if done != steps:
        raise RuntimeError(f"training stopped at step {done} of {steps}")
    at = resumed.step if resumed else None
    return Trained(done, progress.train_seconds, progress.tokens, progress.losses, watch.utilization(), at)


@dataclass
class Progress:
    """What a training has done so far, beside the trainer's own state: what a checkpoint holds of ours.

    Attributes:
        epoch_rng: torch's generator at the epoch's begin, in hex.
    """

    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)
    tokens: int = 0
    train_seconds: float = 0.0
    epoch_rng: str | None = None


def make_dataset(rows: list[Example], loss_on: str) -> Dataset:
    """TRL's pre-tokenized form: it neither adds tokens to such rows nor drops any."""
    return Dataset.from_list([{"input_ids": row.input_ids, "labels": row.mask_labels(loss_on)} for row in rows])


class ResponseTrainer(SFTTrainer):
    """SFTTrainer with the same loss from fewer products, and with adapters on the output head.

    TRL 1.16 multiplies hidden states by ``lm_head.weight`` itself: all positions on a CPU, and never an adapter's
    part. Here the model's own forward gives logits, from the first labelled position of the batch on.
    """

    device: Device
    progress: Progress

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.progress.tokens += int(inputs["attention_mask"].sum())
        head = model.get_base_model().get_output_embeddings()
        if not scores_every_position(self.device) and not isinstance(head, BaseTunerLayer):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        labels = inputs["labels"]
        logits, wanted = compute_response_logits(model, inputs["input_ids"], inputs["attention_mask"], labels)
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        count = (wanted != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        return loss / count

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A checkpoint's adapter. Theirs adds the tokenizer, a pickle, and beside an adapted head the embedding."""
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(get_peft_model_state_dict(self.model, save_embedding_layers=False), folder / SAFETENSORS_WEIGHTS_NAME)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL would write one with every checkpoint."""


class StepCallback(TrainerCallback):
    """Keeps the loss curve, reports each step, and ends a training whose loss or gradient is not finite."""

    def __init__(
        self, progress: Progress, on_step: Callable[[int, int, dict[str, float]], None], device: Device
    ) -> None:
        self.progress, self.on_step, self.device = progress, on_step, device
        self.samples: list[float] = []
        self.began = time.perf_counter(), progress.tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter(), self.progress.tokens

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        values: dict[str, float] = {
            key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm", "epoch") if key in logs
        }
        for key in ("loss", "grad_norm"):
            if not math.isfinite(values.get(key, 0.0)):
                raise Diverged(f"{key} is {values[key]} at step {state.global_step} of {state.max_steps}")
        self.progress.losses.append({"step": state.global_step, **values})
        used = read_gpu_utilization(self.device)
        self.samples += [] if used is None else [used]
        seconds, tokens = time.perf_counter() - self.began[0], self.progress.tokens - self.began[1]
        self.on_step(state.global_step, state.max_steps, {**values, "tokens_per_second": tokens / seconds})

    def utilization(self) -> float | None:
        return sum(self.samples) / len(self.samples) if self.samples else None


class CheckpointCallback(TrainerCallback):
    """Has the trainer save where a later process should go on from, seals what it saved, and ends it on request."""

    def __init__(self, progress: Progress, every: int | None, folder: Path | None, stop: Callable[[], bool]) -> None:
        self.progress, self.every, self.folder, self.stop = progress, every, folder, stop
        self.stopped = False
        self.since = 0.0
        self.first_epoch = True

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around ``trainer.train``: its seconds count."""
        self.since = time.perf_counter()
        yield
        self.count_seconds()

    def count_seconds(self) -> None:
        now = time.perf_counter()
        self.progress.train_seconds += now - self.since
        self.since = now

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let a resumed epoch draw its order as it first did.

        group_by_length draws with torch's generator, which transformers puts back only after that.
        """
        if self.first_epoch and self.progress.epoch_rng:
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(self.progress.epoch_rng), dtype=torch.uint8))
        self.first_epoch = False
        self.progress.epoch_rng = torch.get_rng_state().numpy().tobytes().hex()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """After each step, and before the trainer looks whether to save."""
        if not logs or "loss" not in logs or state.global_step == state.max_steps:
            return
        self.stopped = self.stop()
        due = self.every is not None and state.global_step % self.every == 0
        control.should_save = self.folder is not None and (self.stopped or due)
        control.should_training_stop = control.should_training_stop or self.stopped

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.folder is not None
        self.count_seconds()
        seal(self.folder, state.global_step, dataclasses.asdict(self.progress))


@contextlib.contextmanager
def restore_forward(base: Any) -> Iterator[None]:
    """Undo TRL's patch of the base's forward, which would otherwise nest deeper with every trial on one base."""
    own = base.__dict__.get("forward")
    try:
        yield
    finally:
        base.__dict__.pop("forward", None)
        if own is not None:
            base.forward = own


@contextlib.contextmanager
def allow_head_adapter(model: PeftModel) -> Iterator[None]:
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
