"""Base, adapter and prompts to texts, and losses of given texts under the model. Knows nothing of metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, set_seed

from lora_sweep.config.schema import Eval
from lora_sweep.data.prompts import IGNORED_LABEL, Example, tokenize_text
from lora_sweep.errors import Preempted
from lora_sweep.model.device import Device
from lora_sweep.model.load import compute_response_logits

# A text that no data set of ours is about: what a tuned model has forgotten is what it costs more here than its base.
NEUTRAL_FILE = Path(__file__).with_name("neutral.txt")
MAX_NEUTRAL_TOKENS = 512  # at most: SmolLM2's tokenizer makes 445 of it


@dataclass(frozen=True)
class GeneratedText:
    """One generated text, cut at the end marker; ``finished`` when the model ended it by itself."""

    text: str
    finished: bool
    new_tokens: int


@torch.no_grad()
def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    settings: Eval,
    marker: str,
    device: Device,
    seed: int = 0,
    on_batch: Callable[[int, int], None] = lambda done, texts: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[GeneratedText]:
    """Write a text for each prompt, in batches of like length, left-padded.

    Greedy texts do not depend on the batch size, except with an 8-bit base: LLM.int8 picks its outlier columns by
    looking at the whole batch. Sampled texts depend on the seed and on the batch size.

    Args:
        prompts: token ids.
        marker: a text that ends a response, besides the eos token; may be empty.
        on_batch: called after every batch with the number of texts that are written, and of how many.
        stop: asked before every batch and at every token.

    Raises:
        Preempted: ``stop`` said so.
    """
    set_seed(seed)
    ends = find_eos_ids(model, tokenizer)
    written: dict[int, GeneratedText] = {}
    asked = PreemptionCriteria(stop)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), settings.batch_size):
        asked.heed()
        batch = order[start : start + settings.batch_size]
        ids, mask = pad_left([prompts[index] for index in batch], tokenizer.pad_token_id)
        outputs = model.generate(
            input_ids=ids.to(device.type),
            attention_mask=mask.to(device.type),
            generation_config=make_generation_config(settings, tokenizer, ends),
            stopping_criteria=[asked],
            **({"stop_strings": [marker.strip()], "tokenizer": tokenizer} if marker.strip() else {}),
        )
        for index, new in zip(batch, outputs[:, ids.shape[1] :].tolist(), strict=True):
            written[index] = decode_text(new, tokenizer, ends, marker)
        on_batch(len(written), len(prompts))
    return [written[index] for index in range(len(prompts))]


class PreemptionCriteria(StoppingCriteria):
    """Obeys a request to stop within a token: ends no text by itself, but raises out of ``model.generate``."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def heed(self) -> None:
        if self.stop():
            raise Preempted("while it was writing; the adapter is kept")

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.heed()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def find_eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those that the model's folder names beside it."""
    named = model.generation_config.eos_token_id
    others = named if isinstance(named, list) else [] if named is None else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *others]))


def make_generation_config(settings: Eval, tokenizer: Any, ends: list[int]) -> GenerationConfig:
    """Decoding as ``settings`` says. transformers would fill gaps from the model's own; ``load_base`` empties that."""
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.do_sample else {}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def pad_left(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [batch, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def decode_text(new: list[int], tokenizer: Any, ends: list[int], marker: str) -> GeneratedText:
    """One row of ``generate_texts``'s new tokens, up to its first end token or end marker."""
    end = next((place for place, token in enumerate(new) if token in ends), None)
    new, ended = (new, False) if end is None else (new[: end + 1], True)
    text = tokenizer.decode(new, skip_special_tokens=True)
    sign = marker.strip()
    if sign and sign in text:
        text, ended = text[: text.index(sign)], True
        while len(new) > 1 and sign in tokenizer.decode(new[:-1], skip_special_tokens=True):
            new = new[:-1]  # padding behind the marker
    return GeneratedText(text.strip(), ended, len(new))


@torch.no_grad()
def compute_reference_losses(
    model: Any,
    rows: list[Example],
    pad: int,
    batch_size: int,
    device: Device,
    stop: Callable[[], bool] = lambda: False,
) -> list[tuple[float, int]]:
    """The negative log-likelihood of each row's response, its end included, under the model.

    Args:
        stop: asked before every batch.

    Returns:
        Per row: the sum over its response tokens in nats, and their number.

    Raises:
        Preempted: ``stop`` said so.
    """
    losses: dict[int, tuple[float, int]] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    for start in range(0, len(order), batch_size):
        PreemptionCriteria(stop).heed()
        batch = order[start : start + batch_size]
        longest = max(len(rows[index].input_ids) for index in batch)
        ids, mask, labels = [], [], []
        for index in batch:
            row, missing = rows[index], longest - len(rows[index].input_ids)
            ids.append(row.input_ids + [pad] * missing)
            mask.append([1] * len(row.input_ids) + [0] * missing)
            labels.append(row.mask_labels("response") + [IGNORED_LABEL] * missing)
        tensors = [torch.tensor(values, device=device.type) for values in (ids, mask, labels)]
        logits, wanted = compute_response_logits(model, *tensors)
        each = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED_LABEL, reduction="none"
        )
        counts = (wanted != IGNORED_LABEL).sum(dim=1)
        for index, total, count in zip(batch, each.sum(dim=1).tolist(), counts.tolist(), strict=True):
            losses[index] = (total, count)
    return [losses[index] for index in range(len(rows))]


def compute_neutral_loss(
    model: Any, tokenizer: Any, device: Device, stop: Callable[[], bool] = lambda: False
) -> float | None:
    """The loss of the first NEUTRAL_TOKENS of the neutral text, in nats a token; None where it is not finite.

    Raises:
        Preempted: ``stop`` said so.
    """
    row = tokenize_neutral_text(model, tokenizer)
    ((total, count),) = compute_reference_losses(model, [row], tokenizer.pad_token_id, 1, device, stop)
    return total / count if math.isfinite(total) else None


def tokenize_neutral_text(model: Any, tokenizer: Any) -> Example:
    """The neutral text as far as :func:`compute_neutral_loss` reads it."""
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_NEUTRAL_TOKENS
    ids = tokenize_text(NEUTRAL_FILE.read_text(encoding="utf-8"), tokenizer)[: min(MAX_NEUTRAL_TOKENS, positions)]
    return Example(ids, prompt_length=1, is_cut=False)  # the first token follows nothing
