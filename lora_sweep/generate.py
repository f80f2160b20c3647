"""Base, adapter and prompts to texts, and the loss of references under the model. Knows nothing of metrics."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, set_seed

from lora_sweep.config import Eval
from lora_sweep.device import Device
from lora_sweep.model import response_logits
from lora_sweep.prompts import IGNORED, Example


@dataclass(frozen=True)
class Written:
    """One generated text, cut at the end marker; ``finished`` when the model ended it by itself."""

    text: str
    finished: bool
    new_tokens: int


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], settings: Eval, marker: str, device: Device, seed: int = 0
) -> list[Written]:
    """Write a text for each prompt, in batches of like length, left-padded.

    Greedy texts do not depend on the batch size, except with an 8-bit base: LLM.int8 picks its outlier columns by
    looking at the whole batch. Sampled texts depend on the seed and on the batch size.

    Args:
        prompts: token ids.
        marker: a text that ends a response, besides the eos token; may be empty.
    """
    set_seed(seed)
    written: dict[int, Written] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        ids, mask = pad_left([prompts[index] for index in batch], tokenizer.pad_token_id)
        outputs = model.generate(
            input_ids=ids.to(device.type),
            attention_mask=mask.to(device.type),
            generation_config=generation_config(settings, tokenizer),
            **({"stop_strings": [marker.strip()], "tokenizer": tokenizer} if marker.strip() else {}),
        )
        for index, new in zip(batch, outputs[:, ids.shape[1] :].tolist(), strict=True):
            written[index] = as_written(new, tokenizer, marker, settings.max_new_tokens)
    return [written[index] for index in range(len(prompts))]


def generation_config(settings: Eval, tokenizer: Any) -> GenerationConfig:
    """Decoding as ``settings`` says, and nothing from the model's own generation_config.json."""
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else {}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def pad_left(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [batch, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def as_written(new: list[int], tokenizer: Any, marker: str, limit: int) -> Written:
    """One row of ``generate``'s new tokens, up to its eos token or end marker."""
    ended = tokenizer.eos_token_id in new
    if ended:
        new = new[: new.index(tokenizer.eos_token_id) + 1]
    text = tokenizer.decode(new, skip_special_tokens=True)
    if marker.strip() and marker.strip() in text:
        text, ended = text[: text.index(marker.strip())], True
        while len(new) > 1 and marker.strip() in tokenizer.decode(new[:-1], skip_special_tokens=True):
            new = new[:-1]  # padding behind the marker
    return Written(text.strip(), ended, min(len(new), limit))


@torch.no_grad()
def reference_losses(
    model: Any, rows: list[Example], pad: int, batch_size: int, device: Device
) -> list[tuple[float, int]]:
    """The negative log-likelihood of each row's response, its end included, under the model.

    Returns:
        Per row: the sum over its response tokens in nats, and their number.
    """
    losses: dict[int, tuple[float, int]] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = max(len(rows[index].input_ids) for index in batch)
        ids, mask, labels = [], [], []
        for index in batch:
            row, missing = rows[index], longest - len(rows[index].input_ids)
            ids.append(row.input_ids + [pad] * missing)
            mask.append([1] * len(row.input_ids) + [0] * missing)
            labels.append(row.labels("response") + [IGNORED] * missing)
        tensors = [torch.tensor(values, device=device.type) for values in (ids, mask, labels)]
        logits, wanted = response_logits(model, *tensors)
        each = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        counts = (wanted != IGNORED).sum(dim=1)
        for index, total, count in zip(batch, each.sum(dim=1).tolist(), counts.tolist(), strict=True):
            losses[index] = (total, count)
    return [losses[index] for index in range(len(rows))]
