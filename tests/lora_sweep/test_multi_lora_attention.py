"""Rows as one sequence without padding: its tokens, and attention with the numbers and gradients of each row alone."""

import itertools

import pytest
import torch
from support.here import HERE
from torch.nn.functional import scaled_dot_product_attention

from lora_sweep.config.schema import Model, Quant
from lora_sweep.data.prompts import Example
from lora_sweep.generation.packed_base import infer_with_adapters
from lora_sweep.model.load import load_base
from lora_sweep.multi_lora.attention import attend_layout, use_layout
from lora_sweep.multi_lora.layout import (
    ROW_MULTIPLE,
    DecodingBatch,
    MemberRows,
    RaggedBatch,
    build_padded_index,
    concatenate_rows,
)

HEADS, KV_HEADS, SIZE = 6, 2, 4


def lay_out(lengths: list[list[int]], prefixes: list[int], device: str = "cpu") -> RaggedBatch:
    """Members whose rows have these lengths, and share these prefixes."""
    members = [
        MemberRows([Example(list(range(10, 10 + length)), prefix + 1, False) for length in member], prefix, 1.0)
        for member, prefix in zip(lengths, prefixes, strict=True)
    ]
    return concatenate_rows(members, ["response"] * len(members), device, torch.float32)


def test_a_sequence_is_filled_up_with_its_last_token_which_is_of_no_segment() -> None:
    batch = lay_out([[7, 6]], [0])
    assert batch.segment_sizes == [13]
    assert batch.input_ids.shape == batch.position_ids.shape == (1, 16)
    assert batch.input_ids.shape[1] % ROW_MULTIPLE == 0
    assert batch.input_ids[0, 12:].tolist() == [15] * 4
    assert batch.position_ids[0, 12:].tolist() == [5] * 4
    assert build_padded_index(batch.spans, 16, "cpu", torch.float32).tokens[12:].unique().numel() == 1
    assert max(batch.logit_positions.tolist()) < 12


def test_what_fills_a_sequence_up_is_the_last_token_in_every_layer() -> None:
    base = load_base(Model(name="tiny", tiny="llama"), Quant(None), HERE)
    batch = lay_out([[7, 6]], [2], HERE.type)
    with infer_with_adapters(base, [], HERE), use_layout(batch):
        states = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)[0][0]
    (tokens,) = batch.segment_sizes
    assert tokens == 11
    torch.testing.assert_close(states[tokens:], states[tokens - 1 : tokens].expand(5, -1))


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("prefixes", [[0, 0], [3, 0], [3, 2]])
def test_attention_has_the_numbers_and_gradients_of_each_row_alone(prefixes: list[int], is_padded: bool) -> None:
    torch.manual_seed(0)
    batch = lay_out([[7, 5, 6], [4, 9]], prefixes)
    tokens, real = batch.input_ids.shape[1], sum(batch.segment_sizes)
    if is_padded:  # as on a GPU
        index = build_padded_index(batch.spans, tokens, "cpu", torch.float32)
        batch = RaggedBatch(**{**vars(batch), "padded": index})
    states = [torch.randn(1, heads, tokens, SIZE, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    grad = torch.randn(1, tokens, HEADS, SIZE)
    grad[:, real:] = 0
    with use_layout(batch):
        out, _ = attend_layout(torch.nn.Module(), *states, None)
    expected = torch.zeros_like(out)
    for start, length, prefix_start, prefix_length in batch.spans:
        own, prefix = range(start, start + length), range(prefix_start, prefix_start + prefix_length)
        q, k, v = (tensor[:, :, [*prefix, *own]] for tensor in states)
        alone = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        expected[:, list(own)] = alone.transpose(1, 2)[:, prefix_length:]
    torch.testing.assert_close(out[:, :real], expected[:, :real])
    gradients = torch.autograd.grad(out, states, grad)
    expected_gradients = torch.autograd.grad(expected, states, grad)
    for ours, theirs in itertools.zip_longest(gradients, expected_gradients):
        torch.testing.assert_close(ours, theirs)


def test_the_layout_in_use_is_the_innermost_one() -> None:
    query, key = torch.randn(2, HEADS, 1, SIZE), torch.randn(2, KV_HEADS, 5, SIZE)
    mask = torch.zeros(2, 1, 1, 5)
    with use_layout(lay_out([[7, 5]], [0])), use_layout(DecodingBatch(mask)):
        out, _ = attend_layout(torch.nn.Module(), query, key, key, None)
    expected = scaled_dot_product_attention(query, key, key, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, expected)
