"""Rows of several members as one sequence without padding, and where each row lies in it.

A prefix that all rows of a member share stands in the sequence once, in front of them, and each row attends to it.
Everything in a model but attention treats tokens one by one. Attention (attention.py) reads from here which tokens see
which.

Dimensions: T: tokens of the sequence; S: spans in it (rows without their prefix, and prefixes); L: tokens of the
longest span; P: tokens of the longest prefix; n: tokens whose logits are needed; heads, kv_heads: of queries, and of
keys and values.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from lora_sweep.data.prompts import IGNORED_LABEL, Example

ROW_MULTIPLE = 8  # rows of a bf16 product: other numbers took 5 to 7 % longer, some a third (AVX512-BF16)


@dataclass(frozen=True)
class MemberRows:
    """What one member adds to a sequence.

    Attributes:
        prefix: number of tokens that all ``rows`` begin with, and that are computed once.
        weight: weight of each labelled token in the loss.
    """

    rows: list[Example]
    prefix: int
    weight: float


class Span(NamedTuple):
    """Neighbouring tokens of a sequence: a prefix, or a row without its prefix. Numbers are in tokens."""

    start: int
    length: int
    prefix_start: int
    prefix_length: int  # 0: it attends to no prefix


@dataclass(frozen=True)
class PaddedIndex:
    """The spans as a padded batch, for one attention call.

    Attributes:
        queries: [S, L]: index in the sequence of each span's tokens; beyond a span's end, of its first token.
        keys: [S, P + L]: index of the tokens that a span may attend to, its prefix first.
        mask: [S, 1, L, P + L]: 0, or minus infinity where a token must not look.
        tokens: [T]: index of each token of the sequence among the S * L padded queries.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class SequenceIndex:
    """The spans one after another, with a head's tokens next to each other, for one attention call a span.

    A row here is one head of one token. Query heads that share a key head stand below each other, so that keys and
    values need no copies.

    Attributes:
        query_rows: [T * heads] at most: which rows of the queries, in order of the spans.
        key_rows: [m]: which rows of keys and values; a prefix is repeated in front of each of its spans.
        slices: for each span its rows among ``query_rows`` and among ``key_rows``.
        masks: for each span [its query rows of one key head, its keys]: minus infinity where a token would look ahead.
        query_places, key_places: for each row of the sequence its place in ``query_rows`` and ``key_rows``; a token of
            a prefix has the place of the prefix's own span.
        prefixes: for each span with a prefix: the prefix's first token, its length, and the span's number.
    """

    query_rows: torch.Tensor
    key_rows: torch.Tensor
    slices: list[tuple[slice, slice]]
    masks: list[torch.Tensor]
    query_places: torch.Tensor
    key_places: torch.Tensor
    prefixes: list[tuple[int, int, int]]


@dataclass(frozen=True)
class RaggedBatch:
    """A sequence of T tokens that holds the rows of all members, without padding.

    Attributes:
        input_ids, position_ids: [1, T].
        segment_sizes: tokens of each member, in order. Their sum is less than T where tokens fill T up to a multiple.
        spans: S of them, in order.
        padded: for devices that attend to all spans in one call; None on a CPU.
        logit_positions: [n]: index of the tokens whose logits are needed.
        target_ids: [n]: the tokens that these logits are to predict.
        target_weights: [n], fp32: the weight of each in the loss.
        target_members: [n]: the member that each belongs to; ``target_counts``: how many each member has.
        sequence_indexes: made by :meth:`index_sequences`, by its arguments.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_sizes: list[int]
    spans: list[Span]
    padded: PaddedIndex | None
    logit_positions: torch.Tensor
    target_ids: torch.Tensor
    target_weights: torch.Tensor
    target_members: torch.Tensor
    target_counts: list[int]
    sequence_indexes: dict[tuple[int, int, torch.dtype], SequenceIndex] = field(default_factory=dict)

    def index_sequences(self, heads: int, kv_heads: int, dtype: torch.dtype) -> SequenceIndex:
        """The index for attention with so many heads and masks in ``dtype``; made once for all layers."""
        key = heads, kv_heads, dtype
        if key not in self.sequence_indexes:
            self.sequence_indexes[key] = build_sequence_index(self.spans, heads, kv_heads, dtype)
        return self.sequence_indexes[key]


@dataclass(frozen=True)
class DecodingBatch:
    """A padded batch of B texts under way, with cached keys and values.

    Attributes:
        mask: [B, 1, new tokens, all tokens]: 0, or minus infinity where a token must not look.
    """

    mask: torch.Tensor


def explain_short_window(base: Any, longest: int) -> str | None:
    """Why rows of ``longest`` tokens cannot use our attention, which looks back over the whole row; None: they can."""
    window = getattr(base.config, "sliding_window", None)
    return f"a base that looks back {window} tokens" if window and longest > window else None


def measure_common_prefix(rows: Sequence[Example]) -> int:
    """How many tokens all rows begin with; 0 for one row.

    Less than the shortest prompt: the last token of a prompt predicts the row's own response.
    """
    first = rows[0].input_ids
    length = min(min(row.prompt_length, len(row.input_ids)) for row in rows) - 1
    for row in rows[1:]:
        length = next((index for index in range(length) if row.input_ids[index] != first[index]), max(0, length))
    return max(0, length) if len(rows) > 1 else 0


def concatenate_rows(
    members: Sequence[MemberRows], loss_on: Sequence[str], device: str, dtype: torch.dtype
) -> RaggedBatch:
    """Lay out the rows of ``members`` one after another.

    Args:
        loss_on: for each member, which labels count: ``response`` or ``all``.
        dtype: of the attention's masks.
    """
    ids, positions, sizes = list[int](), list[int](), list[int]()
    spans: list[Span] = []
    weights: dict[tuple[int, int, int], float] = {}  # by member, position in the sequence, and token to predict
    for number, (member, labels_on) in enumerate(zip(members, loss_on, strict=True)):
        begin = len(ids)
        for span, token_ids in split_member(member, begin):
            ids += token_ids
            positions += range(span.prefix_length, span.prefix_length + span.length)
            spans.append(span)
        sizes.append(len(ids) - begin)
        for position, token in find_targets(member, spans[-len(member.rows) :], labels_on):
            key = number, position, token
            weights[key] = weights.get(key, 0.0) + member.weight
    ids, positions = repeat_last(ids), repeat_last(positions)

    def make_tensor(values: Iterable[Any], kind: torch.dtype = torch.long) -> torch.Tensor:
        return torch.as_tensor(values, dtype=kind).to(device)

    return RaggedBatch(
        input_ids=make_tensor([ids]),
        position_ids=make_tensor([positions]),
        segment_sizes=sizes,
        spans=spans,
        padded=None if device == "cpu" else build_padded_index(spans, len(ids), device, dtype),
        logit_positions=make_tensor([position for _, position, _ in weights]),
        target_ids=make_tensor([token for _, _, token in weights]),
        target_weights=make_tensor(list(weights.values()), torch.float32),
        target_members=make_tensor([number for number, _, _ in weights]),
        target_counts=[sum(number == owner for owner, _, _ in weights) for number in range(len(members))],
    )


def repeat_last(values: list[int]) -> list[int]:
    """Add copies of the last value, to a multiple of eight, which makes products faster; a short list stays as it is.

    The tokens added belong to no member and have no label. They are copies because another token could add an outlier
    column to an 8-bit product.
    """
    missing = -len(values) % ROW_MULTIPLE if len(values) > ROW_MULTIPLE else 0
    return values + values[-1:] * missing


def split_member(member: MemberRows, begin: int) -> Iterator[tuple[Span, list[int]]]:
    """A member's prefix, if it has one, and its rows without it: their spans from ``begin`` on, and their token ids."""
    start, prefix = begin, member.prefix
    if prefix:
        yield Span(begin, prefix, begin, 0), member.rows[0].input_ids[:prefix]
        start += prefix
    for row in member.rows:
        yield Span(start, len(row.input_ids) - prefix, begin, prefix), row.input_ids[prefix:]
        start += len(row.input_ids) - prefix


def find_targets(member: MemberRows, spans: Sequence[Span], labels_on: str) -> Iterator[tuple[int, int]]:
    """For each label of a member's rows, which have ``spans``: the position that predicts it, and the token.

    Rows that predict the same token at the same position of their prefix give the same pair, so they share one loss.
    """
    for row, span in zip(member.rows, spans, strict=True):
        for index, label in enumerate(row.mask_labels(labels_on)[1:]):
            if label != IGNORED_LABEL:
                in_prefix = index < span.prefix_length
                yield span.prefix_start + index if in_prefix else span.start + index - span.prefix_length, label


def build_padded_index(spans: Sequence[Span], tokens: int, device: str, dtype: torch.dtype) -> PaddedIndex:
    """Index the spans of a sequence of T = ``tokens`` as a padded batch.

    The tokens that fill the sequence up get what the last token of the last span gets.
    """
    longest = max(span.length for span in spans)
    start, length, prefix_start, prefix_length = torch.tensor(spans).T  # each [S]
    step = torch.arange(longest)  # [L]
    prefix_step = torch.arange(max(span.prefix_length for span in spans))  # [P]
    is_own = step[None] < length[:, None]  # [S, L]
    queries = torch.where(is_own, start[:, None] + step, start[:, None])  # [S, L]
    in_prefix = prefix_step[None] < prefix_length[:, None]  # [S, P]
    prefix = torch.where(in_prefix, prefix_start[:, None] + prefix_step, start[:, None])  # [S, P]
    keys = torch.cat([prefix, queries], dim=1)  # [S, P + L]
    is_seen = (step[None] <= step[:, None])[None] & is_own[:, None, :]  # [S, L, L]
    is_seen = is_seen | (~is_own[:, :, None] & (step == 0))  # padding looks at the first token: else NaN
    is_seen = torch.cat([in_prefix[:, None, :].expand(-1, longest, -1), is_seen], dim=2)  # [S, L, P + L]
    mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))[:, None]  # [S, 1, L, P + L]
    places = torch.empty(tokens, dtype=torch.long)  # [T]
    places[queries[is_own]] = torch.arange(len(spans) * longest).view(len(spans), longest)[is_own]
    places[sum(span.length for span in spans) :] = places[spans[-1].start + spans[-1].length - 1]
    return PaddedIndex(queries.to(device), keys.to(device), mask.to(device, dtype), places.to(device))


def build_sequence_index(spans: Sequence[Span], heads: int, kv_heads: int, dtype: torch.dtype) -> SequenceIndex:
    """Index the spans of a sequence one after another. A row's number in the sequence is ``token * heads + head``."""
    query_rows, key_rows, slices, masks, prefixes = [], [], [], [], []
    tokens = spans[-1].start + spans[-1].length
    query_places = torch.empty(tokens, heads, dtype=torch.long)
    key_places = torch.empty(tokens, kv_heads, dtype=torch.long)
    query_begin = key_begin = 0
    for number, (start, length, prefix_start, prefix_length) in enumerate(spans):
        own = torch.arange(start, start + length)
        seen = torch.cat([torch.arange(prefix_start, prefix_start + prefix_length), own])  # [prefix + length]
        query_rows.append((own * heads + torch.arange(heads)[:, None]).flatten())  # [heads * length]
        key_rows.append((seen * kv_heads + torch.arange(kv_heads)[:, None]).flatten())  # [kv_heads * seen]
        query_places[own] = query_begin + torch.arange(heads * length).view(heads, length).T
        key_places[own] = key_begin + torch.arange(kv_heads * len(seen)).view(kv_heads, -1).T[prefix_length:]
        query_end, key_end = query_begin + len(query_rows[-1]), key_begin + len(key_rows[-1])
        slices.append((slice(query_begin, query_end), slice(key_begin, key_end)))
        ahead = torch.full((length, len(seen)), float("-inf"), dtype=dtype).triu_(prefix_length + 1)
        masks.append(ahead.repeat(heads // kv_heads, 1))  # [heads / kv_heads * length, seen]
        prefixes += [(prefix_start, prefix_length, number)] if prefix_length else []
        query_begin, key_begin = query_end, key_end
    places = query_places.flatten(), key_places.flatten()
    return SequenceIndex(torch.cat(query_rows), torch.cat(key_rows), slices, masks, *places, prefixes)
