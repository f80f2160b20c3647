"""Rows of several adapters as one sequence without padding: blocks of rows, a block a member of a pack.

A prefix that all rows of a block share is there once, and its rows attend to it. Everything but the attention treats
the tokens of the sequence one by one; the attention is ours, and reads from the layout who sees whom.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from lora_sweep.prompts import IGNORED, Example

ATTENTION = "lora_sweep_flat"  # the name of our attention among transformers'
MULTIPLE = 8  # of tokens: bf16 products of another number took 5 to 7 % longer, some a third (AVX512-BF16); of heads


@dataclass(frozen=True)
class Block:
    """What one member contributes to a flat sequence.

    Attributes:
        prefix: tokens that all ``rows`` begin with, and that are computed once.
        weight: of each labelled token in the loss.
    """

    rows: list[Example]
    prefix: int
    weight: float


@dataclass(frozen=True)
class Flat:
    """A flat sequence of T tokens, with R sequences in it: rows without their prefixes, and prefixes.

    Attributes:
        input_ids, position_ids: [1, T].
        sizes: tokens of each block, in order; less than T where some were added to make T a multiple of 8.
        spans: of each sequence its first token, its length, the first token of its prefix, and that one's length.
        padded: how the attention sees the sequences beside each other; None on a CPU, which takes one after another.
        kept: [n]: positions whose logits are needed; ``wanted`` [n]: the tokens they are to predict.
        weights: [n]: of these in the loss; ``owners`` [n]: the blocks they belong to; ``labelled``: how many of each.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sizes: list[int]
    spans: list[tuple[int, int, int, int]]
    padded: "Padded | None"
    kept: torch.Tensor
    wanted: torch.Tensor
    weights: torch.Tensor
    owners: torch.Tensor
    labelled: list[int]


@dataclass(frozen=True)
class Padded:
    """The R sequences of a :class:`Flat`, padded to the longest.

    Attributes:
        queries: [R, longest]: where a sequence's tokens are; beyond its end, any place.
        keys: [R, longest with its prefix]: where what it may attend to is.
        mask: [R, 1, longest, longest with its prefix]: 0, or minus infinity where a token must not look.
        places: [T]: of each token among the padded queries.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor


def short_window(base: Any, longest: int) -> str | None:
    """Why rows of so many tokens cannot be laid out flat: our attention looks back over all of a row."""
    window = getattr(base.config, "sliding_window", None)
    return f"a base that looks back {window} tokens" if window and longest > window else None


def common_prefix(rows: Sequence[Example]) -> int:
    """How many tokens all rows begin with, less than the shortest prompt: a prompt's last token is each row's own."""
    first = rows[0].input_ids
    length = min(min(row.prompt_length, len(row.input_ids)) for row in rows) - 1
    for row in rows[1:]:
        length = next((at for at in range(length) if row.input_ids[at] != first[at]), max(0, length))
    return max(0, length) if len(rows) > 1 else 0


def flatten(blocks: Sequence[Block], loss_on: Sequence[str], device: str, dtype: torch.dtype) -> Flat:
    """Lay out ``blocks``; ``loss_on`` says of each which labels count."""
    ids: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int, int, int]] = []
    losses: dict[tuple[int, int, int], float] = {}  # (block, position, token): weight
    sizes = []
    for number, (block, on) in enumerate(zip(blocks, loss_on, strict=True)):
        begin, shared = len(ids), block.prefix
        if shared:
            ids += block.rows[0].input_ids[:shared]
            positions += range(shared)
            spans.append((begin, shared, begin, 0))
        for row in block.rows:
            start = len(ids)
            ids += row.input_ids[shared:]
            positions += range(shared, len(row.input_ids))
            spans.append((start, len(row.input_ids) - shared, begin, shared))
            for at, label in enumerate(row.labels(on)[1:]):
                if label != IGNORED:
                    key = (number, begin + at if at < shared else start + at - shared, label)
                    losses[key] = losses.get(key, 0.0) + block.weight
        sizes.append(len(ids) - begin)
    if len(ids) > MULTIPLE:  # the last token as often as it takes, of no block and with no label
        beyond = -len(ids) % MULTIPLE
        ids += ids[-1:] * beyond
        positions += positions[-1:] * beyond

    def tensor(values: Any, kind: torch.dtype = torch.long) -> torch.Tensor:
        return torch.as_tensor(values, dtype=kind).to(device)

    return Flat(
        tensor([ids]),
        tensor([positions]),
        sizes,
        spans,
        None if device == "cpu" else _padded(spans, len(ids), device, dtype),
        tensor([position for _, position, _ in losses]),
        tensor([token for _, _, token in losses]),
        tensor(list(losses.values()), torch.float32),
        tensor([number for number, _, _ in losses]),
        [sum(number == of for of, _, _ in losses) for number in range(len(blocks))],
    )


def _padded(spans: Sequence[tuple[int, int, int, int]], tokens: int, device: str, dtype: torch.dtype) -> Padded:
    """The sequences beside each other; what fills up to ``tokens`` stands where the last token does."""
    longest, shared = max(span[1] for span in spans), max(span[3] for span in spans)
    step = torch.arange(longest)
    start, length, prefix_start, prefix_length = torch.tensor(spans).T
    own = step[None] < length[:, None]
    queries = torch.where(own, start[:, None] + step, start[:, None])
    before = torch.arange(shared)
    seen_before = before[None] < prefix_length[:, None]
    prefix = torch.where(seen_before, prefix_start[:, None] + before, start[:, None])
    keys = torch.cat([prefix, queries], dim=1)
    causal = (step[None] <= step[:, None])[None] & own[:, None, :]
    causal = causal | (~own[:, :, None] & (step == 0))  # what is beyond the end looks at something: no NaN
    seen = torch.cat([seen_before[:, None, :].expand(-1, longest, -1), causal], dim=2)
    mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None]
    places = torch.empty(tokens, dtype=torch.long)
    places[queries[own]] = torch.arange(len(spans) * longest).view(len(spans), longest)[own]
    places[sum(span[1] for span in spans) :] = places[spans[-1][0] + spans[-1][1] - 1]
    return Padded(queries.to(device), keys.to(device), mask.to(device, dtype), places.to(device))


@dataclass(frozen=True)
class Batch:
    """A batch of sequences that are written on, whose keys and values are cached.

    Attributes:
        mask: [B, 1, new tokens, all tokens]: 0, or minus infinity where a token must not look.
    """

    mask: torch.Tensor


_attended: list[Flat | Batch] = []


@contextlib.contextmanager
def attending(layout: Flat | Batch) -> Iterator[None]:
    """Within this, our attention reads this layout."""
    _attended.append(layout)
    try:
        yield
    finally:
        _attended.pop()


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, T, size], key and value [1, key heads, T, size].

    In a batch: [B, heads, new tokens, size], and keys and values of all tokens.

    Returns:
        [1, T, heads, size], or [B, new tokens, heads, size].
    """
    layout = _attended[-1]
    if isinstance(layout, Batch):
        return attention(query, key, value, layout.mask, scaling).transpose(1, 2), None
    padded = layout.padded
    if padded is None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        each: torch.Tensor = BySequence.apply(query, key, value, layout.spans, scaling)  # type: ignore[no-untyped-call]
        return each, None
    rows, longest = padded.queries.shape
    q, k, v = (
        _gather(states, places)
        for states, places in ((query, padded.queries), (key, padded.keys), (value, padded.keys))
    )
    out = attention(q, k, v, padded.mask, scaling).transpose(1, 2)
    return out.reshape(rows * longest, query.shape[1], -1).index_select(0, padded.places)[None], None


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention as the device does it fast.

    Args:
        q: [R, heads, n, size]; k and v: [R, key heads, m, size]; mask: [R, 1, n, m], added to the scores.
    """
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    if q.device.type == "cpu":
        return attention_by_products(q, k, v, mask, scaling)
    shared, size = q.shape[1] // k.shape[1], v.shape[-1]
    if shared > 1:  # with a mask and enable_gqa most GPUs are left with the kernel that keeps all probabilities
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    if beyond := -q.shape[-1] % MULTIPLE:  # OpenLLaMA-3B's heads have 100: no fused kernel takes that
        q, k, v = (functional.pad(each, (0, beyond)) for each in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    return out[..., :size]


def attention_by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """:func:`attention` with its probabilities kept.

    For a CPU: torch's fused one took five times as long in bf16 (4 rows of 105 tokens, forward and backward).
    Query heads that share a key head stand below each other, so that keys and values need no copies.
    """
    rows, heads, length, size = q.shape
    groups = rows * k.shape[1]
    k, v = k.reshape(groups, -1, size), v.reshape(groups, -1, v.shape[-1])
    scores = torch.bmm((q * scaling).reshape(groups, -1, size), k.transpose(1, 2))
    seen = torch.softmax(scores.view(rows, heads, length, -1) + mask, dim=-1)
    return torch.bmm(seen.view(groups, -1, k.shape[1]), v).view(rows, heads, length, -1)


class BySequence(torch.autograd.Function):
    """The attention of a flat sequence on a CPU: one of its sequences after another, none of them padded.

    A call costs little there, and this multiplies a third less than sequences padded to the longest.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Any, scaling: float
    ) -> torch.Tensor:
        heads, groups = query.shape[1], key.shape[1]
        out = query.new_zeros(query.shape[2], heads, value.shape[3])
        ctx.spans, ctx.scaling = spans, scaling
        saved: list[torch.Tensor] = []
        ctx.shapes = query.shape, key.shape, value.shape
        for start, length, prefix_start, shared in spans:
            own, before = slice(start, start + length), slice(prefix_start, prefix_start + shared)
            q = (query[0, :, own] * scaling).reshape(groups, -1, query.shape[3])
            k, v = (torch.cat([each[0, :, before], each[0, :, own]], dim=1) for each in (key, value))
            scores = torch.bmm(q, k.transpose(1, 2))
            scores.view(heads, length, -1).add_(_later(length, shared, scores.dtype))
            seen = torch.softmax(scores, dim=-1)
            out[own] = torch.bmm(seen, v).view(heads, length, -1).transpose(0, 1)
            saved += q, k, v, seen
        end = spans[-1][0] + spans[-1][1]
        out[end:] = out[end - 1]  # what fills up is a copy of the last token
        ctx.save_for_backward(*saved)
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (grad,) = gradients
        grad_q, grad_k, grad_v = (grad.new_zeros(shape) for shape in ctx.shapes)
        tensors = ctx.saved_tensors  # asked for once: a checkpoint gives them out once
        saved = [tensors[at::4] for at in range(4)]
        for (start, length, prefix_start, shared), q, k, v, seen in zip(ctx.spans, *saved, strict=True):
            own, before = slice(start, start + length), slice(prefix_start, prefix_start + shared)
            part = grad[0, own].transpose(0, 1).reshape(len(k), -1, v.shape[2])
            slope = torch._softmax_backward_data(torch.bmm(part, v.transpose(1, 2)), seen, -1, seen.dtype)
            grad_q[0, :, own] = torch.bmm(slope, k).view(-1, length, k.shape[2]).mul_(ctx.scaling)
            for to, found in (
                (grad_k, torch.bmm(slope.transpose(1, 2), q)),
                (grad_v, torch.bmm(seen.transpose(1, 2), part)),
            ):
                to[0, :, own] += found[:, shared:]
                to[0, :, before] += found[:, :shared]
        return grad_q, grad_k, grad_v, None, None


@functools.lru_cache(maxsize=32)  # the sequences of a forward: its layers ask for the same
def _later(length: int, shared: int, dtype: torch.dtype) -> torch.Tensor:
    """[length, shared + length]: minus infinity where a token would look ahead, and else 0."""
    return torch.full((length, shared + length), float("-inf"), dtype=dtype).triu_(shared + 1)


def _gather(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, size] at ``places`` [R, n], as [R, heads, n, size]."""
    rows, length = places.shape
    flat = states[0].transpose(0, 1)  # [T, heads, size]
    return flat.index_select(0, places.flatten()).view(rows, length, *flat.shape[1:]).transpose(1, 2)


AttentionInterface.register(ATTENTION, flat_attention)
