"""A base model that carries the adapters of a pack for inference, and whether it works without padding."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from bitsandbytes.nn import Linear8bitLt
from transformers import PreTrainedModel

from lora_sweep.data.prompts import Example
from lora_sweep.model.device import Device, is_out_of_memory
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.attention import ATTENTION_NAME, use_layout
from lora_sweep.multi_lora.layout import MemberRows, concatenate_rows, measure_common_prefix
from lora_sweep.multi_lora.linear import attach_pack
from lora_sweep.multi_lora.segments import AdapterMap

# How far logits without padding may be off, as a part of the logits' norm; more is not explained by rounding.
MAX_LOGIT_ERROR_8BIT = 0.2
MAX_LOGIT_ERROR_16BIT = 0.05
MAX_LOGIT_ERROR_32BIT = 1e-3


@contextlib.contextmanager
def infer_with_adapters(
    base: PreTrainedModel, adapters: Sequence[Adapter | None], device: Device
) -> Iterator[AdapterMap]:
    """Within this context ``base`` has the adapters and our attention, and torch keeps no gradients.

    Args:
        adapters: of the members of a pack; None: a member that uses the base model alone.
    """
    attention = base.config._attn_implementation
    for adapter in adapters:
        if adapter is not None:
            adapter.set_dtype(device.compute_dtype)
    with torch.no_grad(), attach_pack(base, adapters) as adapter_map:
        base.set_attn_implementation(ATTENTION_NAME)
        try:
            yield adapter_map
        finally:
            base.set_attn_implementation(attention)


def find_ragged_batch_problem(base: PreTrainedModel, rows: Sequence[Example], device: Device) -> str | None:
    """The reason why packs cannot use ``base``, because it needs padded rows; None where they can.

    A model can have its own kind of attention, or compute more than one product between its last hidden states and its
    logits. So the logits of the two shortest rows are compared with and without padding.
    """
    pair = sorted(rows, key=lambda row: len(row.input_ids))[:2]
    prefix = measure_common_prefix(pair)
    try:
        ragged_logits = compute_ragged_logits(base, pair, prefix, device)
    except Exception as error:  # a model's own code can raise anything
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error)[:120]}"
    with torch.no_grad():
        logits = [base(input_ids=torch.tensor([row.input_ids], device=device.type)).logits[0] for row in pair]
    expected = torch.cat([logits[0][:prefix], *(row_logits[prefix:] for row_logits in logits)]).float()  # [T, vocab]
    # Without each token's mean: a softmax does not change when all logits of a token move by the same amount.
    expected = expected - expected.mean(dim=1, keepdim=True)
    difference = ragged_logits - ragged_logits.mean(dim=1, keepdim=True) - expected
    error_share = float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(expected))
    if error_share <= find_max_logit_error(base, device):
        return None
    return f"without padding its logits are {error_share:.1%} off"


def compute_ragged_logits(base: PreTrainedModel, rows: list[Example], prefix: int, device: Device) -> torch.Tensor:
    """Logits [T, vocabulary] of rows that are laid out one after another, their common prefix once."""
    with infer_with_adapters(base, [], device):
        batch = concatenate_rows([MemberRows(rows, prefix, 1.0)], ["response"], device.type, device.compute_dtype)
        with use_layout(batch):
            outputs = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        head = base.get_output_embeddings()
        logits: torch.Tensor = head(outputs.last_hidden_state[0, : sum(batch.segment_sizes)])
        return logits.float()


def find_max_logit_error(base: PreTrainedModel, device: Device) -> float:
    if any(isinstance(layer, Linear8bitLt) for layer in base.modules()):
        return MAX_LOGIT_ERROR_8BIT
    return MAX_LOGIT_ERROR_16BIT if device.compute_bytes == 2 else MAX_LOGIT_ERROR_32BIT
