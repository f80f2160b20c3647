"""What the trials of one worker share: tokenizer, rows, their token ids, and the one base that is loaded."""

import dataclasses
import time
from typing import Any

from peft import PeftModel

from lora_sweep.config.identity import canonical
from lora_sweep.config.schema import Config, Data, Quant
from lora_sweep.data.prompts import Example, make_examples
from lora_sweep.data.splits import Splits, load_splits
from lora_sweep.generation.packed import find_flat_layout_problem
from lora_sweep.messages import Voice
from lora_sweep.model.device import Device, reset_peak_memory
from lora_sweep.model.load import base_signature, load_base, load_tokenizer, stored_bits
from lora_sweep.multi_lora.dequantize import dequantize_base


class Shared:
    """What trials of one model and one split share: tokenizer, rows, token ids, and the one base that is loaded."""

    def __init__(self, config: Config, device: Device) -> None:
        self.model, self.device = config.model, device
        self.tokenizer = load_tokenizer(config.model)
        self.split: Splits = load_splits(config.data)
        self.rows_fingerprint = self.split.compute_fingerprint()
        self.tokenized: dict[str, list[Example]] = {}
        self.quant: Quant | None = None
        self.base: Any = None
        self.signature: Any = None
        self.trouble: str | None = None  # with packs of the base at hand; empty: it was looked for and not found

    def examples(self, split: str, data: Data, max_length: int) -> list[Example]:
        """The rows of a split as token ids, made once for each form of the prompt."""
        key = canonical([split, data.template, data.end_marker, max_length])
        if key not in self.tokenized:
            self.tokenized[key] = make_examples(getattr(self.split, split), data, self.tokenizer, max_length)
        return self.tokenized[key]

    def base_at(self, quant: Quant, voice: Voice) -> Any:
        """The base with ``quant``'s weights, without an adapter; loaded where it is not the one at hand, untouched."""
        if self.quant != quant or base_signature(self.base) != self.signature:
            self.drop()
            reset_peak_memory(self.device)  # and with it the old one's memory, before the next one is loaded
            voice.phase("loading")
            started = time.perf_counter()
            self.base = load_base(self.model, quant, self.device)
            kept = " and dequantized it once" if dequantize_base(self.base, quant, self.device) else ""
            self.quant, self.signature, self.trouble = quant, base_signature(self.base), None
            bits = stored_bits(quant.bits, self.device)
            voice.say(f"loaded {self.model.name} at {bits} bits{kept} in {time.perf_counter() - started:.1f} s")
        return self.base

    def no_packs(self, rows: list[Example]) -> str | None:
        """Why trials on the base at hand take TRL's way; looked for once. None: packs give the same."""
        if self.trouble is None:
            self.trouble = find_flat_layout_problem(self.base, rows, self.device) or ""
        return self.trouble or None

    def release(self, model: PeftModel) -> None:
        """Take the adapter off. A base that is not as before is loaded anew by the next ``base_at``."""
        self.base = model.unload()

    def drop(self) -> None:
        """Forget the base: a training that broke off can leave hooks on it, which no signature shows."""
        self.base, self.quant = None, None


def shared_key(config: Config) -> str:
    """Equal for configs that can use one :class:`Shared`: the form of a prompt is a trial's own."""
    data = dataclasses.replace(config.data, template="alpaca", end_marker=None)
    return canonical([dataclasses.asdict(config.model), dataclasses.asdict(data)])
