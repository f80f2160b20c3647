"""Train one adapter with TRL's SFTTrainer. It can be killed at any step and resume later.

This is the reference that packs are tested against, and it trains what a pack does not support. The module knows
nothing of the runs folder, of prompts or of scores.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTTrainer

from lora_sweep.config.schema import Train
from lora_sweep.data.prompts import IGNORED_LABEL, Example
from lora_sweep.errors import Preempted
from lora_sweep.model.device import Device, scores_every_position
from lora_sweep.model.load import compute_response_logits
from lora_sweep.model.sft_settings import make_sft_config
from lora_sweep.runs.checkpoints import Checkpoint, find_last_valid, prune_checkpoints
from lora_sweep.training.progress import OnStep, Progress, Trained, average_samples
from lora_sweep.training.trl_callbacks import CheckpointCallback, StepCallback


def train_with_trl(
    model: PeftModel,
    rows: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    train: Train,
    seed: int,
    device: Device,
    scratch: Path,
    on_step: OnStep = lambda step, steps, values: None,
    checkpoints: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train the adapter of ``model`` on ``rows``, in place; from the last checkpoint on, where there is one.

    Args:
        scratch: a folder for the trainer's own files.
        on_step: called after every optimizer step, also with ``tokens_per_second`` since the start of the process.
        checkpoints: a folder that outlives the process; None: nothing is saved.
        stop: called after every optimizer step; True: save and end.

    Raises:
        Diverged: a loss or gradient norm is not finite.
        Preempted: ``stop`` returned True before the last step.
        Refused: ``train.sft`` has a key or value that SFTConfig does not accept.
    """
    checkpoint = None if checkpoints is None else find_trl_checkpoint(checkpoints)
    progress = Progress(**checkpoint.progress) if checkpoint else Progress()
    reporting = StepCallback(progress, on_step, device)
    saving = CheckpointCallback(progress, train.checkpoint_steps, checkpoints, stop)
    with restore_forward(model.get_base_model()), allow_head_adapter(model):
        weights = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        trainer = ResponseTrainer(
            model=model,
            args=make_sft_config(train, seed, device, checkpoints or scratch),
            train_dataset=make_dataset(rows, train.loss_on),
            processing_class=tokenizer,
            callbacks=[reporting, saving],
        )
        trainer.device, trainer.progress = device, progress
        trainer.remove_callback(PrinterCallback)  # it prints every step; on_step reports them
        restore_weights(model, weights)
        with saving.count_train_seconds():
            trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if saving.is_stopped:
        raise Preempted(f"saved at step {step} of {steps}" if checkpoints else f"at step {step}; nothing was saved")
    if step != steps:
        raise RuntimeError(f"training stopped at step {step} of {steps}")
    utilization, resumed_from = average_samples(reporting.utilization_samples), checkpoint.step if checkpoint else None
    return Trained(step, progress.train_seconds, progress.tokens, progress.losses, utilization, resumed_from)


def find_trl_checkpoint(checkpoints: Path) -> Checkpoint | None:
    """The last valid checkpoint, if TRL's trainer wrote it; one that a pack wrote is ignored.

    Removes damaged checkpoints, because the trainer would write into their folders.
    """
    checkpoint = find_last_valid(checkpoints)
    if checkpoint is not None and not (checkpoint.folder / "trainer_state.json").is_file():
        checkpoint = None
    prune_checkpoints(checkpoints, checkpoint.step if checkpoint else 0)
    return checkpoint


def restore_weights(model: PeftModel, weights: dict[str, torch.Tensor]) -> None:
    """Give the adapter its fp32 weights back after the trainer was made.

    SFTTrainer rounds the adapter to bf16 on a quantized base. In bf16 an update at a learning rate of 1e-5 leaves most
    weights as they are. With fp32 weights every update counts, and autocast still multiplies in the compute dtype.
    """
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data = weights[name]


def make_dataset(rows: list[Example], loss_on: str) -> Dataset:
    """The rows in TRL's pre-tokenized form; TRL neither adds tokens to such rows nor drops any."""
    return Dataset.from_list([{"input_ids": row.input_ids, "labels": row.mask_labels(loss_on)} for row in rows])


class ResponseTrainer(SFTTrainer):
    """SFTTrainer with the same loss from fewer products, and with support for an adapter on the output head.

    TRL 1.16 multiplies hidden states by ``lm_head.weight`` itself. On a CPU it does so for all positions, and it always
    leaves out the head's adapter. Here the model's own forward makes the logits, from the first labelled position of
    the batch on.
    """

    device: Device
    progress: Progress

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean loss of the labelled tokens, as TRL defines it.

        Args:
            inputs: input_ids, attention_mask and labels, each [batch, length].
            num_items_in_batch: labelled tokens of all micro-batches of the step; None: those of this one.
        """
        self.progress.tokens += int(inputs["attention_mask"].sum())
        head = model.get_base_model().get_output_embeddings()
        if not scores_every_position(self.device) and not isinstance(head, BaseTunerLayer):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        logits, labels = compute_response_logits(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),  # [batch, n, vocabulary] -> [batch * n, vocabulary]
            labels.flatten(),  # [batch, n] -> [batch * n]
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        count = (labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        return loss / count

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save the adapter alone.

        The trainer would add the tokenizer, a pickle, and the embedding where the output head has an adapter.
        """
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(get_peft_model_state_dict(self.model, save_embedding_layers=False), folder / SAFETENSORS_WEIGHTS_NAME)

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Do nothing: TRL would write a model card with every checkpoint."""


@contextlib.contextmanager
def restore_forward(base: torch.nn.Module) -> Iterator[None]:
    """Undo TRL's patch of the base's forward afterwards; it would nest deeper with every trial on the same base."""
    own = base.__dict__.get("forward")
    try:
        yield
    finally:
        base.__dict__.pop("forward", None)
        if own is not None:
            base.forward = own


@contextlib.contextmanager
def allow_head_adapter(model: PeftModel) -> Iterator[None]:
    """Let SFTTrainer accept an adapter on the output head.

    Its constructor refuses one, found with ``get_output_embeddings``, because TRL's own loss would never train it. The
    loss of :class:`ResponseTrainer` does.
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
