"""The objects that stay in a worker's memory between trials: tokenizer, rows, their token ids, one base model."""

import dataclasses
import time
from typing import Any

from peft import PeftModel

from lora_sweep.config.identity import to_canonical_json
from lora_sweep.config.schema import Config, Data, Quant
from lora_sweep.data.prompts import Example, make_examples
from lora_sweep.data.splits import Splits, load_splits
from lora_sweep.generation.packed_base import find_ragged_batch_problem
from lora_sweep.messages import Reporter
from lora_sweep.model.device import Device, reset_peak_memory
from lora_sweep.model.load import base_signature, load_base, load_tokenizer, stored_bits
from lora_sweep.multi_lora.dequantize import dequantize_base


class Resident:
    """The tokenizer, the rows and the base model that all trials on one model and one data set use."""

    def __init__(self, config: Config, device: Device) -> None:
        self.key = make_resident_key(config)
        self.model, self.device = config.model, device
        self.tokenizer = load_tokenizer(config.model)
        self.splits: Splits = load_splits(config.data)
        self.rows_fingerprint = self.splits.compute_fingerprint()
        self._examples: dict[str, list[Example]] = {}  # the key holds the split, the form of the prompt and max_length
        self._base: Any = None
        self._quant: Quant | None = None
        self._signature: Any = None
        self._pack_problem: str | None = None  # of the loaded base: "" means none, None not yet tested

    def tokenize_rows(self, split: str, data: Data, max_length: int) -> list[Example]:
        """The rows of a split as token ids. They are made only once for each form of the prompt."""
        key = to_canonical_json([split, data.template, data.end_marker, max_length])
        if key not in self._examples:
            self._examples[key] = make_examples(getattr(self.splits, split), data, self.tokenizer, max_length)
        return self._examples[key]

    def provide_base(self, quant: Quant, reporter: Reporter) -> Any:
        """The base model, quantized as ``quant`` says, without an adapter. Loads it unless it is loaded already."""
        if self._quant != quant or base_signature(self._base) != self._signature:
            self.drop_base()
            reset_peak_memory(self.device)  # this frees the old base before the new one is loaded
            reporter.report_phase("loading")
            started = time.perf_counter()
            self._base = load_base(self.model, quant, self.device)
            dequantized = " and dequantized it once" if dequantize_base(self._base, quant, self.device) else ""
            self._quant, self._signature, self._pack_problem = quant, base_signature(self._base), None
            bits, seconds = stored_bits(quant.bits, self.device), time.perf_counter() - started
            reporter.report_text(f"loaded {self.model.name} at {bits} bits{dequantized} in {seconds:.1f} s")
        return self._base

    def find_pack_problem(self, rows: list[Example]) -> str | None:
        """Why trials on the loaded base cannot run in a pack; None if a pack computes the same as the libraries.

        Args:
            rows: the base is tested with these rows, only once.
        """
        if self._pack_problem is None:
            self._pack_problem = find_ragged_batch_problem(self._base, rows, self.device) or ""
        return self._pack_problem or None

    def detach_adapter(self, model: PeftModel) -> None:
        """Take the adapter off the base. If that changes the base, the next ``provide_base`` loads it again."""
        self._base = model.unload()

    def drop_base(self) -> None:
        """Forget the base. A training that failed can leave hooks on it, which its signature does not show."""
        self._base, self._quant = None, None


def make_resident_key(config: Config) -> str:
    """A text that is equal for configurations that can use one :class:`Resident`. Prompts may have different forms."""
    data = dataclasses.replace(config.data, template="alpaca", end_marker=None)
    return to_canonical_json([dataclasses.asdict(config.model), dataclasses.asdict(data)])
