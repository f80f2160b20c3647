"""What a batch of sequences keeps from one token to the next: input, positions, mask, and cached keys and values."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from lora_sweep.generation.single import pad_left
from lora_sweep.model.device import Device

CACHE_GROWTH_TOKENS = 64  # tokens by which the cache grows at a time


@dataclass
class DecodingState:
    """The input of the next forward for B sequences, with L tokens so far, of which N are new in this forward.

    Attributes:
        input_ids, position_ids: [B, N].
        mask: [B, 1, N, L]: 0, or minus infinity where a token must not look.
        cache: the keys and values of the tokens before.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    cache: Cache

    def keep_sequences(self, indices: list[int]) -> None:
        """Remove all other sequences from the batch."""
        kept = torch.tensor(indices, device=self.input_ids.device)
        self.cache.batch_select_indices(kept)
        self.mask, self.position_ids = self.mask[:, :, -1:][kept], self.position_ids[kept]

    def append_tokens(self, tokens: list[int]) -> None:
        """Make the last token of each sequence the next input."""
        self.input_ids = torch.tensor([[token] for token in tokens], device=self.input_ids.device)  # [B, 1]
        self.position_ids = self.position_ids[:, -1:] + 1  # [B, 1]
        last = self.mask[:, :, -1:]  # [B, 1, 1, L]
        self.mask = torch.cat([last, last.new_zeros(len(tokens), 1, 1, 1)], dim=3)  # [B, 1, 1, L + 1]


def prefill_state(prompts: list[list[int]], pad_id: int, device: Device) -> DecodingState:
    """The state in front of the first forward, which takes all prompts [B, N], left-padded."""
    input_ids, seen = pad_left(prompts, pad_id)  # [B, N] each
    length = input_ids.shape[1]
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(length, length).tril() * seen[:, None, :]  # [B, N, N]
    causal = causal + (1 - seen)[:, :, None] * torch.eye(length)  # padding sees itself, or its softmax would be NaN
    mask = torch.zeros(causal.shape).masked_fill_(causal == 0, float("-inf"))[:, None]
    return DecodingState(
        input_ids.to(device.type),
        positions.to(device.type),
        mask.to(device.type, device.compute_dtype),
        Cache(layer_class_to_replicate=GrowingCacheLayer),
    )


class GrowingCacheLayer(DynamicLayer):
    """One layer's keys and values in buffers with spare room; transformers' own layer copies them at every token."""

    length = 0  # tokens in the buffers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values [B, heads, new, size], and return all of them [B, heads, length, size]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [key_states.new_empty(0), value_states.new_empty(0)]
        start, self.length = self.length, self.length + key_states.shape[2]
        for index, states in enumerate((key_states, value_states)):
            buffer = self.buffers[index]
            if start == 0 or buffer.shape[2] < self.length:
                grown = states.new_empty(*states.shape[:2], self.length + CACHE_GROWTH_TOKENS, states.shape[3])
                if start:
                    grown[:, :, :start] = buffer[:, :, :start]
                self.buffers[index] = buffer = grown
            buffer[:, :, start : self.length] = states
        return self.expose_states()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences at ``indices``."""
        self.buffers = [buffer.index_select(0, indices) for buffer in self.buffers]
        self.expose_states()

    def expose_states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Set and return ``keys`` and ``values``, where transformers expects them: the used part of the buffers."""
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values
