"""Losses of given texts under one model or under one member of a pack. Knows nothing of metrics."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_sweep.data.prompts import IGNORED_LABEL, Example, tokenize_text
from lora_sweep.generation.single import PreemptionCriteria, find_pad_id
from lora_sweep.model.device import Device
from lora_sweep.model.load import compute_response_logits
from lora_sweep.multi_lora.attention import use_layout
from lora_sweep.multi_lora.head_loss import compute_head_loss
from lora_sweep.multi_lora.layout import MemberRows, concatenate_rows, measure_common_prefix
from lora_sweep.multi_lora.segments import AdapterMap

# An everyday text that is in none of our data sets. A tuned model that loses more on it than its base has forgotten.
NEUTRAL_FILE = Path(__file__).with_name("neutral.txt")
MAX_NEUTRAL_TOKENS = 512  # SmolLM2's tokenizer makes 445 tokens of the text


class RowLoss(NamedTuple):
    """The negative log-likelihood of a row's response: the sum over its tokens in nats, and their number."""

    nats: float
    tokens: int


def split_batches(rows: Sequence[Example], batch_size: int, stop: Callable[[], bool]) -> Iterator[list[int]]:
    """Indices of rows of similar length, ``batch_size`` at a time; raises Preempted where ``stop`` returns True."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    for start in range(0, len(order), batch_size):
        PreemptionCriteria(stop).raise_if_stopped()
        yield order[start : start + batch_size]


@torch.no_grad()
def compute_reference_losses(
    model: Any,
    rows: list[Example],
    pad_id: int,
    batch_size: int,
    device: Device,
    stop: Callable[[], bool] = lambda: False,
) -> list[RowLoss]:
    """The loss of each row's response, its end included, under ``model``.

    Args:
        stop: called before every batch; True: raise Preempted.

    Raises:
        Preempted: ``stop`` returned True.
    """
    losses: dict[int, RowLoss] = {}
    for batch in split_batches(rows, batch_size, stop):
        tensors = pad_right([rows[index] for index in batch], pad_id)
        logits, labels = compute_response_logits(model, *(tensor.to(device.type) for tensor in tensors))
        token_losses = torch.nn.functional.cross_entropy(  # [batch, n], 0 where there is no label
            logits.float().transpose(1, 2),  # [batch, vocabulary, n]
            labels,  # [batch, n]
            ignore_index=IGNORED_LABEL,
            reduction="none",
        )
        counts = (labels != IGNORED_LABEL).sum(dim=1)
        for index, total, count in zip(batch, token_losses.sum(dim=1).tolist(), counts.tolist(), strict=True):
            losses[index] = RowLoss(total, count)
    return [losses[index] for index in range(len(rows))]


def pad_right(rows: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and the labels of the responses, each [batch, longest]."""
    longest = max(len(row.input_ids) for row in rows)
    ids, mask, labels = [], [], []
    for row in rows:
        missing = longest - len(row.input_ids)
        ids.append(row.input_ids + [pad_id] * missing)
        mask.append([1] * len(row.input_ids) + [0] * missing)
        labels.append(row.mask_labels("response") + [IGNORED_LABEL] * missing)
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)


def compute_member_losses(
    base: PreTrainedModel,
    adapter_map: AdapterMap,
    member: int,
    rows: Sequence[Example],
    batch_size: int,
    device: Device,
    stop: Callable[[], bool] = lambda: False,
) -> list[RowLoss]:
    """The loss of each row's response, its end included, under one member of a pack.

    Args:
        adapter_map: what ``infer_with_adapters`` yields.
        member: the index of the member's adapter in it.
        stop: called before every batch; True: raise Preempted.

    Raises:
        Preempted: ``stop`` returned True.
    """
    losses: dict[int, RowLoss] = {}
    for batch in split_batches(rows, batch_size, stop):
        member_rows = [rows[index] for index in batch]
        token_losses = compute_token_losses(base, adapter_map, member, member_rows, device)
        start = 0
        for index, row in zip(batch, member_rows, strict=True):
            count = len(row.input_ids) - max(1, row.prompt_length)
            losses[index] = RowLoss(float(token_losses[start : start + count].double().sum()), count)
            start += count
    return [losses[index] for index in range(len(rows))]


def compute_token_losses(
    base: PreTrainedModel, adapter_map: AdapterMap, member: int, rows: list[Example], device: Device
) -> torch.Tensor:
    """The losses [n] in nats of the response tokens of ``rows``, one row after another."""
    block = MemberRows(rows, measure_common_prefix(rows), 1.0)
    batch = concatenate_rows([block], ["response"], device.type, device.compute_dtype)
    adapter_map.segment_sizes = [0] * len(adapter_map.adapters)
    adapter_map.segment_sizes[member] = batch.input_ids.shape[1]
    with use_layout(batch):
        outputs = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        states = outputs.last_hidden_state[0].index_select(0, batch.logit_positions)  # [1, T, hidden] -> [n, hidden]
        adapter_map.segment_sizes[member] = len(states)  # an adapted head sees only these
        _, token_losses = compute_head_loss(
            states, base.get_output_embeddings(), batch.target_ids, batch.target_weights
        )
    return token_losses


def compute_neutral_loss(
    model: Any, tokenizer: PreTrainedTokenizerBase, device: Device, stop: Callable[[], bool] = lambda: False
) -> float | None:
    """The mean loss of the neutral text's first MAX_NEUTRAL_TOKENS tokens, in nats; None where it is not finite.

    Raises:
        Preempted: ``stop`` returned True.
    """
    row = tokenize_neutral_text(model, tokenizer)
    (loss,) = compute_reference_losses(model, [row], find_pad_id(tokenizer), 1, device, stop)
    return loss.nats / loss.tokens if math.isfinite(loss.nats) else None


def tokenize_neutral_text(model: Any, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The start of the neutral text: at most MAX_NEUTRAL_TOKENS, and not more than the model has positions."""
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_NEUTRAL_TOKENS
    ids = tokenize_text(NEUTRAL_FILE.read_text(encoding="utf-8"), tokenizer)[: min(MAX_NEUTRAL_TOKENS, positions)]
    return Example(ids, prompt_length=1, is_cut=False)  # the first token has nothing to be predicted from
