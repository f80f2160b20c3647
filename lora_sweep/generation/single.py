"""Generate texts with one model, by transformers' ``generate``. Knows nothing of metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, set_seed

from lora_sweep.config.schema import Eval
from lora_sweep.errors import Preempted
from lora_sweep.model.device import Device


@dataclass(frozen=True)
class GeneratedText:
    """One generated text, cut at its end marker.

    Attributes:
        finished: the model ended the text, as opposed to the limit on new tokens.
        new_tokens: how many tokens were generated, the end included.
    """

    text: str
    finished: bool
    new_tokens: int


class PreemptionCriteria(StoppingCriteria):
    """Ends a generation within one token of a request to stop, by raising Preempted. It never ends a single text."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def raise_if_stopped(self) -> None:
        """Raise Preempted if ``stop`` returns True."""
        if self.stop():
            raise Preempted("during generation; the adapter is saved")

    def __call__(self, input_ids: Any, scores: Any, **kwargs: object) -> torch.BoolTensor:
        """Called by ``model.generate`` at every token; input_ids: [batch, length]. Returns [batch], all False."""
        self.raise_if_stopped()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


@torch.no_grad()
def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    settings: Eval,
    end_marker: str,
    device: Device,
    seed: int = 0,
    on_batch: Callable[[int, int], None] = lambda done, texts: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[GeneratedText]:
    """Generate a text for each prompt, in left-padded batches of prompts of similar length.

    Greedy texts do not depend on the batch size, except with an 8-bit base: LLM.int8 finds its outlier columns by
    looking at the whole batch. Sampled texts depend on the seed and on the batch size.

    Args:
        prompts: token ids.
        end_marker: a text that ends a response, in addition to the eos token; may be empty.
        on_batch: called after every batch with the number of texts that are done, and of all texts.
        stop: called before every batch and at every token; True: raise Preempted.

    Returns:
        The texts in the order of ``prompts``.

    Raises:
        Preempted: ``stop`` returned True.
    """
    set_seed(seed)
    eos_ids, marker = find_eos_ids(model, tokenizer), end_marker.strip()
    preemption = PreemptionCriteria(stop)
    texts: dict[int, GeneratedText] = {}  # by the index of the prompt
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), settings.batch_size):
        preemption.raise_if_stopped()
        batch = order[start : start + settings.batch_size]
        input_ids, mask = pad_left([prompts[index] for index in batch], find_pad_id(tokenizer))
        outputs = model.generate(  # [batch, prompt length + new tokens]
            input_ids=input_ids.to(device.type),
            attention_mask=mask.to(device.type),
            generation_config=make_generation_config(settings, tokenizer, eos_ids),
            stopping_criteria=[preemption],
            **({"stop_strings": [marker], "tokenizer": tokenizer} if marker else {}),
        )
        for index, new_ids in zip(batch, outputs[:, input_ids.shape[1] :].tolist(), strict=True):
            texts[index] = decode_text(new_ids, tokenizer, eos_ids, end_marker)
        on_batch(len(texts), len(prompts))
    return [texts[index] for index in range(len(prompts))]


def find_eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation config."""
    model_ids = model.generation_config.eos_token_id
    more = model_ids if isinstance(model_ids, list) else [] if model_ids is None else [model_ids]
    return list(dict.fromkeys([tokenizer.eos_token_id, *more]))


def find_pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up batches; every tokenizer that ``load_tokenizer`` returns has one."""
    return int(tokenizer.pad_token_id)


def make_generation_config(settings: Eval, tokenizer: PreTrainedTokenizerBase, eos_ids: list[int]) -> GenerationConfig:
    """The decoding settings of an evaluation in transformers' form.

    transformers would fill gaps from the model's own generation config; ``load_base`` has emptied that.
    """
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.do_sample else {}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        eos_token_id=eos_ids,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [batch, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def decode_text(
    new_ids: list[int], tokenizer: PreTrainedTokenizerBase, eos_ids: list[int], end_marker: str
) -> GeneratedText:
    """The text of generated token ids, up to the first eos token or end marker."""
    end = next((index for index, token in enumerate(new_ids) if token in eos_ids), None)
    is_finished = end is not None
    if end is not None:
        new_ids = new_ids[: end + 1]
    text, marker = decode_ids(new_ids, tokenizer), end_marker.strip()
    if marker and marker in text:
        text, is_finished = text[: text.index(marker)], True
        while len(new_ids) > 1 and marker in decode_ids(new_ids[:-1], tokenizer):
            new_ids = new_ids[:-1]  # padding after the marker
    return GeneratedText(text.strip(), is_finished, len(new_ids))


def decode_ids(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of token ids, without special tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))
