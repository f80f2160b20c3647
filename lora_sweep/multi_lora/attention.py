"""Attention for the layouts of layout.py, which transformers calls by the name :data:`ATTENTION_NAME`.

A CPU attends to one span after another, since a call costs little there and padded spans took a third longer. Every
other device attends to all spans in one padded call. Decoding attends to a padded batch with cached keys and values.

Dimensions: T: tokens of the sequence; S: spans; L: tokens of the longest span, or new tokens; K: tokens that they may
attend to; B: texts of a decoding batch; heads, kv_heads: of queries, and of keys and values; group: heads / kv_heads;
size: of a head.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from lora_sweep.multi_lora.layout import DecodingBatch, RaggedBatch, SequenceIndex
from lora_sweep.multi_lora.member_threads import get_member_thread

ATTENTION_NAME = "lora_sweep"  # among transformers' attention functions
HEAD_SIZE_MULTIPLE = 8  # OpenLLaMA-3B's heads have 100 numbers: no fused kernel of torch takes them unpadded

_layouts: dict[int, list[RaggedBatch | DecodingBatch]] = {}  # by member thread; the one in use is last


@contextlib.contextmanager
def use_layout(layout: RaggedBatch | DecodingBatch) -> Iterator[None]:
    """Within this, attention in the present member thread follows ``layout``."""
    layouts = _layouts.setdefault(get_member_thread(), [])
    layouts.append(layout)
    try:
        yield
    finally:
        layouts.pop()


def attend_layout(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature that transformers expects.

    Args:
        query: [1, heads, T, size]; in decoding [B, heads, L, size].
        key, value: [1, kv_heads, T, size]; in decoding [B, kv_heads, K, size].
        attention_mask: not read; the layout in use says what is seen.

    Returns:
        [1, T, heads, size]; in decoding [B, L, heads, size]. And None for the probabilities.
    """
    layout = _layouts[get_member_thread()][-1]
    if isinstance(layout, DecodingBatch):
        return attend_padded(query, key, value, layout.mask, scaling).transpose(1, 2), None
    padded = layout.padded
    if padded is None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        index = layout.index_sequences(query.shape[1], key.shape[1], query.dtype)
        attended: torch.Tensor = SequenceAttention.apply(query, key, value, index, scaling)  # type: ignore[no-untyped-call]
        return attended, None
    spans, longest = padded.queries.shape
    q = _gather_tokens(query, padded.queries)  # [S, heads, L, size]
    k, v = _gather_tokens(key, padded.keys), _gather_tokens(value, padded.keys)  # [S, kv_heads, K, size]
    out = attend_padded(q, k, v, padded.mask, scaling).transpose(1, 2)  # [S, L, heads, size]
    return out.reshape(spans * longest, query.shape[1], -1).index_select(0, padded.tokens)[None], None


def attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """``softmax(scaling * q @ k.T + mask) @ v`` of a padded batch, by the device's fastest way.

    Args:
        q: [S, heads, L, size]. k, v: [S, kv_heads, K, size]. mask: [S, 1, L, K], added to the scores.
        scaling: None for ``size ** -0.5``.

    Returns:
        [S, heads, L, size].
    """
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    if q.device.type == "cpu":
        return attend_by_products(q, k, v, mask, scaling)
    group, size = q.shape[1] // k.shape[1], v.shape[-1]
    if group > 1:  # with a mask and enable_gqa most GPUs are left with the kernel that keeps all probabilities
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [S, heads, K, size]
    if missing := -q.shape[-1] % HEAD_SIZE_MULTIPLE:
        q, k, v = (functional.pad(states, (0, missing)) for states in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    return out[..., :size]


def attend_by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """:func:`attend_padded` for a CPU: two products and a softmax, whose probabilities are kept.

    torch's fused attention took five times as long in bf16 (4 rows of 105 tokens, forward and backward). Query heads
    that share a key head stand below each other, so that keys and values need no copies.
    """
    batch, heads, length, size = q.shape
    kv_batch = batch * k.shape[1]
    k, v = k.reshape(kv_batch, -1, size), v.reshape(kv_batch, -1, v.shape[-1])  # [S * kv_heads, K, size]
    scores = torch.bmm((q * scaling).reshape(kv_batch, -1, size), k.transpose(1, 2))  # [S * kv_heads, group * L, K]
    probabilities = torch.softmax(scores.view(batch, heads, length, -1) + mask, dim=-1)  # [S, heads, L, K]
    return torch.bmm(probabilities.view(kv_batch, -1, k.shape[1]), v).view(batch, heads, length, -1)


class SequenceAttention(torch.autograd.Function):
    """Causal attention over a ragged sequence on a CPU, one span after another, none of them padded.

    For each span, with the rows of its queries q and of the keys k and values v of its prefix and itself:
    Forward: ``p = softmax(scaling * q @ k.T + mask)``, ``y = p @ v`` (arXiv 1706.03762).
    Backward: ``dv = p.T @ dy``, ``ds = p * (dp - sum(p * dp))`` with ``dp = dy @ v.T``, ``dq = scaling * ds @ k``,
    ``dk = ds.T @ q * scaling``. A prefix gets the sum over all spans that attend to it.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, index: SequenceIndex, scaling: float
    ) -> torch.Tensor:
        heads, kv_heads, tokens = query.shape[1], key.shape[1], query.shape[2]
        q = _split_heads(query).index_select(0, index.query_rows).mul_(scaling)  # [rows of all spans, size]
        k, v = (_split_heads(states).index_select(0, index.key_rows) for states in (key, value))
        attended, saved = q.new_empty(len(q), v.shape[1]), [q, k, v]
        for (queries, keys), mask in zip(index.slices, index.masks, strict=True):
            span_q, span_k, span_v = _by_kv_head(kv_heads, q[queries], k[keys], v[keys])  # [kv_heads, rows, size]
            scores = torch.baddbmm(mask, span_q, span_k.transpose(1, 2))  # [kv_heads, group * length, K]
            probabilities = torch.softmax(scores, dim=-1)
            torch.bmm(probabilities, span_v, out=_by_kv_head(kv_heads, attended[queries])[0])
            saved.append(probabilities)
        out = _scatter_rows(attended, index.query_places, tokens, heads)  # [T, heads, size]
        end = len(index.query_places) // heads
        out[end:] = out[end - 1]  # the tokens that fill the sequence up are copies of the last one
        ctx.save_for_backward(*saved)
        ctx.index, ctx.heads, ctx.kv_heads, ctx.tokens, ctx.scaling = index, heads, kv_heads, tokens, scaling
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        index, kv_heads = ctx.index, ctx.kv_heads
        q, k, v, *saved_probabilities = ctx.saved_tensors  # read once: gradient checkpointing gives them out once
        grad = gradients[0].reshape(-1, v.shape[1]).index_select(0, index.query_rows)
        grad_q, grad_k, grad_v = (torch.empty_like(rows) for rows in (q, k, v))
        for (queries, keys), probabilities in zip(index.slices, saved_probabilities, strict=True):
            span_q, span_k, span_v, span_grad = _by_kv_head(kv_heads, q[queries], k[keys], v[keys], grad[queries])
            out_q, out_k, out_v = _by_kv_head(kv_heads, grad_q[queries], grad_k[keys], grad_v[keys])
            grad_p = torch.bmm(span_grad, span_v.transpose(1, 2))  # [kv_heads, group * length, K]
            grad_scores = torch._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype)
            torch.bmm(grad_scores, span_k, out=out_q)
            torch.bmm(grad_scores.transpose(1, 2), span_q, out=out_k)
            torch.bmm(probabilities.transpose(1, 2), span_grad, out=out_v)
        grad_query = _scatter_rows(grad_q.mul_(ctx.scaling), index.query_places, ctx.tokens, ctx.heads, 0)
        grad_key, grad_value = (_sum_prefixes(rows, index, ctx.tokens, kv_heads) for rows in (grad_k, grad_v))
        return *(states[None].transpose(1, 2) for states in (grad_query, grad_key, grad_value)), None, None


def _sum_prefixes(rows: torch.Tensor, index: SequenceIndex, tokens: int, kv_heads: int) -> torch.Tensor:
    """Gradients of keys or values [m, size] as [T, kv_heads, size]; a prefix gets the sum over its spans."""
    out = _scatter_rows(rows, index.key_places, tokens, kv_heads, 0)
    for begin, length, number in index.prefixes:
        (span_rows,) = _by_kv_head(kv_heads, rows[index.slices[number][1]])  # [kv_heads, K, size]
        out[begin : begin + length] += span_rows[:, :length].transpose(0, 1)
    return out


def _split_heads(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, size] as rows [T * heads, size]."""
    return states[0].transpose(0, 1).reshape(-1, states.shape[3])


def _by_kv_head(kv_heads: int, *rows: torch.Tensor) -> list[torch.Tensor]:
    """Rows of one span, each [n, size] as [kv_heads, n / kv_heads, size]."""
    return [states.view(kv_heads, -1, states.shape[1]) for states in rows]


def _scatter_rows(
    rows: torch.Tensor, places: torch.Tensor, tokens: int, heads: int, fill: float | None = None
) -> torch.Tensor:
    """Rows [n, size] as [T, heads, size], each token from its ``places``; the tokens after those get ``fill``."""
    out = rows.new_empty(tokens, heads, rows.shape[1])
    end = len(places) // heads
    torch.index_select(rows, 0, places, out=out[:end].view(len(places), -1))
    if fill is not None:
        out[end:] = fill
    return out


def _gather_tokens(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The tokens [S, K] of states [1, heads, T, size], as [S, heads, K, size]."""
    spans, length = tokens.shape
    by_token = states[0].transpose(0, 1)  # [T, heads, size]
    return by_token.index_select(0, tokens.flatten()).view(spans, length, *by_token.shape[1:]).transpose(1, 2)


AttentionInterface.register(ATTENTION_NAME, attend_layout)
