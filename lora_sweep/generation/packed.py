"""Base, adapters and prompts to texts: all adapters of a pack in one batch, and losses of given texts under each.

A text is the same as if its adapter wrote alone. What takes TRL's way in training is written by ``generate``. Knows
nothing of metrics.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer

from lora_sweep.config.schema import Eval
from lora_sweep.data.prompts import Example
from lora_sweep.generation.single import GeneratedText, PreemptionCriteria, decode_text, find_eos_ids, pad_left
from lora_sweep.model.device import Device, is_out_of_memory
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.attention import ATTENTION_NAME, use_layout
from lora_sweep.multi_lora.head_loss import compute_head_loss
from lora_sweep.multi_lora.layout import DecodingBatch, MemberRows, concatenate_rows, measure_common_prefix
from lora_sweep.multi_lora.linear import attach_pack
from lora_sweep.multi_lora.segments import AdapterMap

CACHE_GROWTH_TOKENS = 64  # tokens that a cache grows by at a time
MIN_ACTIVE_SHARE = 0.75  # of a batch still being written: below it, finished texts are taken out of it


@dataclass(frozen=True)
class GenerationRequest:
    """Who writes: a member of a pack. ``adapter`` is None for the base itself; ``prompts`` are token ids."""

    adapter: Adapter | None
    prompts: list[list[int]]
    marker: str
    seed: int = 0


@contextlib.contextmanager
def infer_with_adapters(base: Any, adapters: Sequence[Adapter | None], device: Device) -> Iterator[AdapterMap]:
    """Within this, ``base`` has the adapters and our attention, and keeps no gradient."""
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


# --- texts -----------------------------------------------------------------------------------------------------------


@dataclass
class DecodingSequence:
    """One text under way."""

    author: int
    place: int  # among its author's prompts
    prompt: list[int]
    generator: torch.Generator | None
    new: list[int]
    over: bool = False


def generate_pack(
    base: Any,
    tokenizer: Any,
    authors: Sequence[GenerationRequest],
    settings: Eval,
    device: Device,
    on_text: Callable[[int, int], None] = lambda author, done: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[list[GeneratedText]], list[float]]:
    """Write a text for each prompt of each author, ``settings.batch_size`` of each at once.

    Greedy texts do not depend on who else writes, except with an 8-bit base: LLM.int8 picks its outlier columns by
    looking at the whole batch. A sampled text depends on its author's seed and its place among the prompts.

    Args:
        on_text: called after every text with its author's number, and how many of the author's are written.
        stop: asked at every token.

    Returns:
        Each author's texts in the order of the prompts, and seconds: the time is shared by tokens.

    Raises:
        Preempted: ``stop`` said so.
    """
    ends, asked = find_eos_ids(base, tokenizer), PreemptionCriteria(stop)
    written: list[dict[int, GeneratedText]] = [{} for _ in authors]
    seconds = [0.0] * len(authors)

    def done(text: DecodingSequence) -> None:
        written[text.author][text.place] = decode_text(text.new, tokenizer, ends, authors[text.author].marker)
        on_text(text.author, len(written[text.author]))

    with infer_with_adapters(base, [author.adapter for author in authors], device) as adapter_map:
        for batch in make_batches(authors, settings, device):
            begun = time.perf_counter()
            decode_batch(base, adapter_map, batch, Decoding(tokenizer, settings, ends, authors, device), asked, done)
            share = (time.perf_counter() - begun) / max(1, sum(len(text.new) for text in batch))
            for text in batch:
                seconds[text.author] += share * len(text.new)
    return [[texts[place] for place in range(len(texts))] for texts in written], seconds


def make_batches(
    authors: Sequence[GenerationRequest], settings: Eval, device: Device
) -> Iterator[list[DecodingSequence]]:
    """The texts that are written together: prompts of like length, an author's next to each other."""
    orders = [sorted(range(len(author.prompts)), key=lambda place: len(author.prompts[place])) for author in authors]
    for start in range(0, max(map(len, orders), default=0), settings.batch_size):
        batch = []
        for number, (author, order) in enumerate(zip(authors, orders, strict=True)):
            for place in order[start : start + settings.batch_size]:
                generator = None
                if settings.do_sample:
                    generator = torch.Generator(device.type).manual_seed(author.seed * 1_000_003 + place)
                batch.append(DecodingSequence(number, place, author.prompts[place], generator, []))
        yield batch


@dataclass(frozen=True)
class Decoding:
    """How texts are written: what all batches have in common."""

    tokenizer: Any
    settings: Eval
    ends: list[int]
    authors: Sequence[GenerationRequest]
    device: Device

    def chosen(self, logits: torch.Tensor, texts: Sequence[DecodingSequence]) -> list[int]:
        """The next token of each text, from logits [texts, vocabulary]."""
        if not self.settings.do_sample:
            return [int(token) for token in logits.argmax(dim=-1).tolist()]
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.settings.temperature)])
        if self.settings.top_p < 1:
            warpers.append(TopPLogitsWarper(self.settings.top_p))
        likely = torch.softmax(warpers(torch.empty(0, dtype=torch.long), logits.float()), dim=-1)  # type: ignore[arg-type]
        drawn = [torch.multinomial(row, 1, generator=t.generator) for row, t in zip(likely, texts, strict=True)]
        return [int(token) for token in torch.cat(drawn).tolist()]

    def ended(self, text: DecodingSequence) -> bool:
        """Whether the text is as long as it may be, or has said that it ends."""
        if text.new[-1] in self.ends or len(text.new) >= self.settings.max_new_tokens:
            return True
        sign = self.authors[text.author].marker.strip()
        tail = text.new[-len(sign) - 8 :]  # a token is a character or more, but for parts of one
        return bool(sign) and sign in self.tokenizer.decode(tail, skip_special_tokens=True)


def decode_batch(
    base: Any,
    adapter_map: AdapterMap,
    texts: list[DecodingSequence],
    how: Decoding,
    asked: PreemptionCriteria,
    done: Callable[[DecodingSequence], None],
) -> None:
    """Write ``texts`` to their ends, token by token; the cache of keys and values holds those still being written."""
    kind, device = how.device.compute_dtype, how.device.type
    ids, seen = pad_left([text.prompt for text in texts], how.tokenizer.pad_token_id)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(ids.shape[1], ids.shape[1]).tril() * seen[:, None, :]
    causal = causal + (1 - seen)[:, :, None] * torch.eye(ids.shape[1])  # padding looks at itself: no NaN
    mask = torch.zeros(causal.shape).masked_fill_(causal == 0, float("-inf"))[:, None].to(device, kind)
    cache = Cache(layer_class_to_replicate=GrowingCacheLayer)
    ids, positions = ids.to(device), positions.to(device)
    alive = list(texts)
    while True:
        asked.heed()
        adapter_map.segment_sizes = [
            sum(text.author == number for text in alive) for number in range(len(adapter_map.adapters))
        ]
        with use_layout(DecodingBatch(mask)):
            hidden = base.base_model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
            # Of two dimensions: a product with [texts, 1, hidden], cut from all positions, would copy the head's
            # weights for every text.
            logits = base.get_output_embeddings()(hidden.last_hidden_state[:, -1])
        for text, token in zip(alive, how.chosen(logits, alive), strict=True):
            if not text.over:
                text.new.append(token)
                text.over = how.ended(text)
                if text.over:
                    done(text)
        left = [number for number, text in enumerate(alive) if not text.over]
        if not left:
            return
        last = mask[:, :, -1:]
        if len(left) < MIN_ACTIVE_SHARE * len(alive):
            chosen = torch.tensor(left, device=device)
            cache.batch_select_indices(chosen)
            last, positions = last[chosen], positions[chosen]
            alive = [alive[number] for number in left]
        ids = torch.tensor([[text.new[-1]] for text in alive], device=device)
        positions = positions[:, -1:] + 1
        mask = torch.cat([last, last.new_zeros(len(alive), 1, 1, 1)], dim=3)


class GrowingCacheLayer(DynamicLayer):
    """A layer's keys and values with room for more: theirs copies all of them at every token."""

    length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add [B, heads, new, size] and return all of them, [B, heads, length, size]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.stores = [key_states.new_empty(0), value_states.new_empty(0)]
        begin, self.length = self.length, self.length + key_states.shape[2]
        for number, states in enumerate((key_states, value_states)):
            store = self.stores[number]
            if begin == 0 or store.shape[2] < self.length:
                grown = states.new_empty(*states.shape[:2], self.length + CACHE_GROWTH_TOKENS, states.shape[3])
                if begin:
                    grown[:, :, :begin] = store[:, :, :begin]
                self.stores[number] = store = grown
            store[:, :, begin : self.length] = states
        self.keys, self.values = (store[:, :, : self.length] for store in self.stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some of the batch."""
        self.stores = [store.index_select(0, indices) for store in self.stores]
        self.keys, self.values = (store[:, :, : self.length] for store in self.stores)


# --- losses ----------------------------------------------------------------------------------------------------------


def compute_member_losses(
    base: Any,
    adapter_map: AdapterMap,
    member: int,
    rows: Sequence[Example],
    batch_size: int,
    device: Device,
    stop: Callable[[], bool] = lambda: False,
) -> list[tuple[float, int]]:
    """The negative log-likelihood of each row's response, its end included, under one member of a pack.

    Args:
        adapter_map: of :func:`infer_with_adapters`.

    Returns:
        Per row: the sum over its response tokens in nats, and their number.

    Raises:
        Preempted: ``stop`` said so.
    """
    losses: dict[int, tuple[float, int]] = {}
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids))
    for start in range(0, len(order), batch_size):
        PreemptionCriteria(stop).heed()
        places = order[start : start + batch_size]
        some = [rows[place] for place in places]
        batch = concatenate_rows(
            [MemberRows(some, measure_common_prefix(some), 1.0)], ["response"], device.type, device.compute_dtype
        )
        adapter_map.segment_sizes = [0] * len(adapter_map.adapters)
        adapter_map.segment_sizes[member] = batch.input_ids.shape[1]
        with use_layout(batch):
            hidden = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
            states = hidden.last_hidden_state[0].index_select(0, batch.logit_positions)
            adapter_map.segment_sizes[member] = len(states)
            _, each = compute_head_loss(states, base.get_output_embeddings(), batch.target_ids, batch.target_weights)
        begin = 0
        for place, row in zip(places, some, strict=True):
            count = len(row.input_ids) - max(1, row.prompt_length)
            losses[place] = float(each[begin : begin + count].double().sum()), count
            begin += count
    return [losses[place] for place in range(len(rows))]


def find_flat_layout_problem(base: Any, rows: Sequence[Example], device: Device) -> str | None:
    """Why ``base`` cannot take rows without padding; None where two of them get the same logits with and without.

    A model can have an attention of its own, or do more than a product between its last states and its logits.
    """
    some = sorted(rows, key=lambda row: len(row.input_ids))[:2]
    shared = measure_common_prefix(some)
    try:
        with infer_with_adapters(base, [], device):
            batch = concatenate_rows([MemberRows(some, shared, 1.0)], ["response"], device.type, device.compute_dtype)
            with use_layout(batch):
                hidden = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
            found = base.get_output_embeddings()(hidden.last_hidden_state[0, : sum(batch.segment_sizes)]).float()
    except Exception as error:  # whatever a model's own code cannot do
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error)[:120]}"
    with torch.no_grad():
        alone = [base(input_ids=torch.tensor([row.input_ids], device=device.type)).logits[0] for row in some]
    expected = torch.cat([alone[0][:shared], *(logits[shared:] for logits in alone)]).float()
    expected = expected - expected.mean(dim=1, keepdim=True)
    off = found - found.mean(dim=1, keepdim=True) - expected
    share = float(torch.linalg.vector_norm(off) / torch.linalg.vector_norm(expected))
    eight = any(isinstance(layer, Linear8bitLt) for layer in base.modules())
    allowed = 0.2 if eight else 0.05 if device.compute_bytes == 2 else 1e-3
    return None if share <= allowed else f"without padding its logits are {share:.1%} off"
