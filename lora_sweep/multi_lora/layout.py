"""Rows of several adapters as one sequence without padding: blocks of rows, a block a member of a pack.

A prefix that all rows of a block share is there once, and its rows attend to it. Everything but the attention treats
the tokens of the sequence one by one; the attention is ours, and reads from the layout who sees whom.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from lora_sweep.data.prompts import IGNORED_LABEL, Example
from lora_sweep.multi_lora.member_threads import get_member_thread

ATTENTION_NAME = "lora_sweep"  # the name of our attention among transformers'
ROW_MULTIPLE = 8  # of tokens: bf16 products of another number took 5 to 7 % longer, some a third (AVX512-BF16)


@dataclass(frozen=True)
class MemberRows:
    """What one member contributes to a flat sequence.

    Attributes:
        prefix: tokens that all ``rows`` begin with, and that are computed once.
        weight: of each labelled token in the loss.
    """

    rows: list[Example]
    prefix: int
    weight: float


@dataclass(frozen=True)
class RaggedBatch:
    """A flat sequence of T tokens, with R sequences in it: rows without their prefixes, and prefixes.

    Attributes:
        input_ids, position_ids: [1, T].
        sizes: tokens of each block, in order; less than T where some were added to make T a multiple of 8.
        spans: of each sequence its first token, its length, the first token of its prefix, and that one's length.
        padded: how the attention sees the sequences beside each other; None on a CPU, which takes one after another.
        kept: [n]: positions whose logits are needed; ``wanted`` [n]: the tokens they are to predict.
        weights: [n]: of these in the loss; ``owners`` [n]: the blocks they belong to; ``labelled``: how many of each.
        sequences: how a CPU's attention sees the sequences, by :func:`index_sequences`'s further arguments.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sizes: list[int]
    spans: list[tuple[int, int, int, int]]
    padded: "PaddedIndex | None"
    kept: torch.Tensor
    wanted: torch.Tensor
    weights: torch.Tensor
    owners: torch.Tensor
    labelled: list[int]
    sequences: dict[Any, "SequenceIndex"] = field(default_factory=dict)


@dataclass(frozen=True)
class PaddedIndex:
    """The R sequences of a :class:`RaggedBatch`, padded to the longest.

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


def explain_short_window(base: Any, longest: int) -> str | None:
    """Why rows of so many tokens cannot be laid out flat: our attention looks back over all of a row."""
    window = getattr(base.config, "sliding_window", None)
    return f"a base that looks back {window} tokens" if window and longest > window else None


def measure_common_prefix(rows: Sequence[Example]) -> int:
    """How many tokens all rows begin with, less than the shortest prompt: a prompt's last token is each row's own."""
    first = rows[0].input_ids
    length = min(min(row.prompt_length, len(row.input_ids)) for row in rows) - 1
    for row in rows[1:]:
        length = next((at for at in range(length) if row.input_ids[at] != first[at]), max(0, length))
    return max(0, length) if len(rows) > 1 else 0


def concatenate_rows(
    blocks: Sequence[MemberRows], loss_on: Sequence[str], device: str, dtype: torch.dtype
) -> RaggedBatch:
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
            for at, label in enumerate(row.mask_labels(on)[1:]):
                if label != IGNORED_LABEL:
                    key = (number, begin + at if at < shared else start + at - shared, label)
                    losses[key] = losses.get(key, 0.0) + block.weight
        sizes.append(len(ids) - begin)
    if len(ids) > ROW_MULTIPLE:  # the last token as often as it takes, of no block and with no label
        beyond = -len(ids) % ROW_MULTIPLE
        ids += ids[-1:] * beyond
        positions += positions[-1:] * beyond

    def tensor(values: Any, kind: torch.dtype = torch.long) -> torch.Tensor:
        return torch.as_tensor(values, dtype=kind).to(device)

    return RaggedBatch(
        tensor([ids]),
        tensor([positions]),
        sizes,
        spans,
        None if device == "cpu" else pad_spans(spans, len(ids), device, dtype),
        tensor([position for _, position, _ in losses]),
        tensor([token for _, _, token in losses]),
        tensor(list(losses.values()), torch.float32),
        tensor([number for number, _, _ in losses]),
        [sum(number == of for of, _, _ in losses) for number in range(len(blocks))],
    )


def pad_spans(spans: Sequence[tuple[int, int, int, int]], tokens: int, device: str, dtype: torch.dtype) -> PaddedIndex:
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
    return PaddedIndex(queries.to(device), keys.to(device), mask.to(device, dtype), places.to(device))


@dataclass(frozen=True)
class DecodingBatch:
    """A batch of sequences that are written on, whose keys and values are cached.

    Attributes:
        mask: [B, 1, new tokens, all tokens]: 0, or minus infinity where a token must not look.
    """

    mask: torch.Tensor


_attended: dict[int, list[RaggedBatch | DecodingBatch]] = {}  # by lane, the innermost last


@contextlib.contextmanager
def use_layout(layout: RaggedBatch | DecodingBatch) -> Iterator[None]:
    """Within this, our attention reads this layout."""
    layouts = _attended.setdefault(get_member_thread(), [])
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
    """transformers' attention interface: query [1, heads, T, size], key and value [1, key heads, T, size].

    In a batch: [B, heads, new tokens, size], and keys and values of all tokens.

    Returns:
        [1, T, heads, size], or [B, new tokens, heads, size].
    """
    layout = _attended[get_member_thread()][-1]
    if isinstance(layout, DecodingBatch):
        return attend_padded(query, key, value, layout.mask, scaling).transpose(1, 2), None
    padded = layout.padded
    if padded is None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        found = index_sequences(layout, query.shape[1], key.shape[1], query.dtype)
        each: torch.Tensor = SequenceAttention.apply(query, key, value, found, scaling)  # type: ignore[no-untyped-call]
        return each, None
    rows, longest = padded.queries.shape
    q, k, v = (
        _gather_rows(states, places)
        for states, places in ((query, padded.queries), (key, padded.keys), (value, padded.keys))
    )
    out = attend_padded(q, k, v, padded.mask, scaling).transpose(1, 2)
    return out.reshape(rows * longest, query.shape[1], -1).index_select(0, padded.places)[None], None


def attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention as the device does it fast.

    Args:
        q: [R, heads, n, size]; k and v: [R, key heads, m, size]; mask: [R, 1, n, m], added to the scores.
    """
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    if q.device.type == "cpu":
        return attend_by_products(q, k, v, mask, scaling)
    shared, size = q.shape[1] // k.shape[1], v.shape[-1]
    if shared > 1:  # with a mask and enable_gqa most GPUs are left with the kernel that keeps all probabilities
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    if beyond := -q.shape[-1] % ROW_MULTIPLE:  # OpenLLaMA-3B's heads have 100: no fused kernel takes that
        q, k, v = (functional.pad(each, (0, beyond)) for each in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    return out[..., :size]


def attend_by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """:func:`attend_padded` with its probabilities kept.

    For a CPU: torch's fused one took five times as long in bf16 (4 rows of 105 tokens, forward and backward).
    Query heads that share a key head stand below each other, so that keys and values need no copies.
    """
    rows, heads, length, size = q.shape
    groups = rows * k.shape[1]
    k, v = k.reshape(groups, -1, size), v.reshape(groups, -1, v.shape[-1])
    scores = torch.bmm((q * scaling).reshape(groups, -1, size), k.transpose(1, 2))
    seen = torch.softmax(scores.view(rows, heads, length, -1) + mask, dim=-1)
    return torch.bmm(seen.view(groups, -1, k.shape[1]), v).view(rows, heads, length, -1)


@dataclass(frozen=True)
class SequenceIndex:
    """Where the R sequences of a flat sequence lie one after another, with a head's tokens beside each other.

    A row is one head's of one token. Query heads that share a key head stand below each other.

    Attributes:
        queries: [n]: which rows of the queries, in order; ``keys`` [m]: which of keys and values, a prefix in front of
            each of its sequences.
        parts: of each sequence its rows among the n and among the m.
        masks: of each sequence [its query rows a key head, its keys]: minus infinity where a token would look ahead.
        query_places, key_places: of each row of the flat sequence among the n and the m; of a prefix its own.
        prefixes: of each sequence that has one: where its prefix begins, its length, and the sequence's number.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    parts: list[tuple[slice, slice]]
    masks: list[torch.Tensor]
    query_places: torch.Tensor
    key_places: torch.Tensor
    prefixes: list[tuple[int, int, int]]


def index_sequences(layout: RaggedBatch, heads: int, groups: int, dtype: torch.dtype) -> SequenceIndex:
    """Of a layout, with so many query heads and key heads; made once, for all layers of a forward."""
    key = heads, groups, dtype
    if key not in layout.sequences:
        layout.sequences[key] = _build_index(layout.spans, heads, groups, dtype)
    return layout.sequences[key]


def _build_index(spans: list[tuple[int, int, int, int]], heads: int, groups: int, dtype: torch.dtype) -> SequenceIndex:
    queries, keys, parts, masks, prefixes = [], [], [], [], []
    end = spans[-1][0] + spans[-1][1]
    query_places, key_places = torch.empty(end, heads, dtype=torch.long), torch.empty(end, groups, dtype=torch.long)
    n = m = 0
    for number, (start, length, prefix_start, shared) in enumerate(spans):
        own = torch.arange(start, start + length)
        seen = torch.cat([torch.arange(prefix_start, prefix_start + shared), own])
        queries.append((own * heads + torch.arange(heads)[:, None]).flatten())
        keys.append((seen * groups + torch.arange(groups)[:, None]).flatten())
        query_places[own] = n + torch.arange(heads * length).view(heads, length).T
        key_places[own] = m + torch.arange(groups * len(seen)).view(groups, -1).T[shared:]
        parts.append((slice(n, n + len(queries[-1])), slice(m, m + len(keys[-1]))))
        ahead = torch.full((length, len(seen)), float("-inf"), dtype=dtype).triu_(shared + 1)
        masks.append(ahead.repeat(heads // groups, 1))
        prefixes += [(prefix_start, shared, number)] if shared else []
        n, m = parts[-1][0].stop, parts[-1][1].stop
    places = query_places.flatten(), key_places.flatten()
    return SequenceIndex(torch.cat(queries), torch.cat(keys), parts, masks, *places, prefixes)


class SequenceAttention(torch.autograd.Function):
    """The attention of a flat sequence on a CPU: one of its sequences after another, none of them padded.

    A call costs little there, and this multiplies a third less than sequences padded to the longest.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: SequenceIndex, scaling: float
    ) -> torch.Tensor:
        groups, tokens = key.shape[1], query.shape[2]
        q = _split_rows(query).index_select(0, found.queries).mul_(scaling)
        k, v = (_split_rows(each).index_select(0, found.keys) for each in (key, value))
        made, saved = q.new_empty(len(q), v.shape[1]), [q, k, v]
        for (of_q, of_k), mask in zip(found.parts, found.masks, strict=True):
            its_q, its_k, its_v = _group_rows(groups, q[of_q], k[of_k], v[of_k])
            seen = torch.softmax(torch.baddbmm(mask, its_q, its_k.transpose(1, 2)), dim=-1)
            torch.bmm(seen, its_v, out=_group_rows(groups, made[of_q])[0])
            saved.append(seen)
        out = _scatter_rows(made, found.query_places, tokens, query.shape[1])
        end = len(found.query_places) // query.shape[1]
        out[end:] = out[end - 1]  # what fills up is a copy of the last token
        ctx.save_for_backward(*saved)
        ctx.found, ctx.groups, ctx.tokens, ctx.heads, ctx.scaling = found, groups, tokens, query.shape[1], scaling
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        found, groups = ctx.found, ctx.groups
        q, k, v, *every_seen = ctx.saved_tensors  # asked for once: a checkpoint gives them out once
        grad = gradients[0].reshape(-1, v.shape[1]).index_select(0, found.queries)
        grad_q, grad_k, grad_v = (torch.empty_like(each) for each in (q, k, v))
        for (of_q, of_k), seen in zip(found.parts, every_seen, strict=True):
            its_q, its_k, its_v, its_grad = _group_rows(groups, q[of_q], k[of_k], v[of_k], grad[of_q])
            to_q, to_k, to_v = _group_rows(groups, grad_q[of_q], grad_k[of_k], grad_v[of_k])
            slope = torch._softmax_backward_data(torch.bmm(its_grad, its_v.transpose(1, 2)), seen, -1, seen.dtype)
            torch.bmm(slope, its_k, out=to_q)
            torch.bmm(slope.transpose(1, 2), its_q, out=to_k)
            torch.bmm(seen.transpose(1, 2), its_grad, out=to_v)
        of_query = _scatter_rows(grad_q.mul_(ctx.scaling), found.query_places, ctx.tokens, ctx.heads, 0)
        of_both = []
        for each in (grad_k, grad_v):
            out = _scatter_rows(each, found.key_places, ctx.tokens, groups, 0)
            for begin, shared, number in found.prefixes:
                (its_rows,) = _group_rows(groups, each[found.parts[number][1]])
                out[begin : begin + shared] += its_rows[:, :shared].transpose(0, 1)
            of_both.append(out)
        return *(each[None].transpose(1, 2) for each in (of_query, *of_both)), None, None


def _split_rows(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, size] as [T * heads, size]."""
    return states[0].transpose(0, 1).reshape(-1, states.shape[3])


def _group_rows(groups: int, *rows: torch.Tensor) -> list[torch.Tensor]:
    """Rows of one sequence [n, size], each as [groups, n / groups, size]."""
    return [each.view(groups, -1, each.shape[1]) for each in rows]


def _scatter_rows(
    rows: torch.Tensor, places: torch.Tensor, tokens: int, heads: int, beyond: float | None = None
) -> torch.Tensor:
    """[tokens, heads, size]: ``rows`` where ``places`` says; after those ``beyond``, or anything."""
    out = rows.new_empty(tokens, heads, rows.shape[1])
    end = len(places) // heads
    torch.index_select(rows, 0, places, out=out[:end].view(len(places), -1))
    if beyond is not None:
        out[end:] = beyond
    return out


def _gather_rows(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, size] at ``places`` [R, n], as [R, heads, n, size]."""
    rows, length = places.shape
    flat = states[0].transpose(0, 1)  # [T, heads, size]
    return flat.index_select(0, places.flatten()).view(rows, length, *flat.shape[1:]).transpose(1, 2)


AttentionInterface.register(ATTENTION_NAME, attend_layout)
