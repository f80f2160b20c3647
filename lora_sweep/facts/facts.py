"""What is known of a base model and of a data set without loading a weight: plain values, kept as JSON.

``inspect`` makes them, once, in a process of its own; everything that plans, checks or sizes a trial is
arithmetic over them. Imports no torch, and opens no file but its own cache.
"""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import short_hash
from lora_sweep.config.schema import Config
from lora_sweep.config.user_functions import function_fingerprint
from lora_sweep.runs.cache import cache_folder
from lora_sweep.runs.files import read_json

FACTS_VERSION = 3  # raise it when the same model or data would give other facts
VISIBLE_DEVICE_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)  # which accelerators torch sees


@dataclass(frozen=True)
class Linear:
    """One matrix that LoRA can adapt. ``name`` is its full path in the model."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class ModelFacts:
    """A causal language model as its architecture alone shows it.

    ``attn`` and ``mlp`` are full names out of ``linears``; ``head`` is the output head's name. All counts are
    of single numbers, so ``total_params`` times bytes per number is a size; ``bias_params`` are those of every bias,
    a LayerNorm's too.
    """

    fingerprint: str
    model_type: str
    linears: list[Linear]
    attn: list[str]
    mlp: list[str]
    head: str | None
    tied_head: bool
    total_params: int
    bias_params: int
    hidden_size: int
    layers: int
    vocab_size: int
    max_positions: int | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelFacts":
        return cls(**{**value, "linears": [Linear(**linear) for linear in value["linears"]]})


@dataclass(frozen=True)
class DataFacts:
    """A data set under one template and one tokenizer. Lengths are in tokens; None where no tokenizer was at hand.

    ``dropped`` counts rows by the reason for which they were left out, and ``cut_rows`` those of the training
    split whose response loses its end to ``train.max_length``.
    """

    fingerprint: str  # of the source: a file's sha256, or repository@revision
    rows_fingerprint: str | None = None  # of the rows of all splits, after dropping
    rows_read: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    cut_rows: int | None = None
    train_tokens: int | None = None  # of one epoch, cut to max_length
    longest_row: int | None = None  # prompt and response, before cutting
    longest_prompt: int | None = None  # of those that are generated from
    cut_validation_rows: int | None = None  # of those that the validation loss is over

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DataFacts":
        return cls(**value)


@dataclass(frozen=True)
class Facts:
    """What one (model, data) pair of a sweep looks like on this machine."""

    model: ModelFacts
    data: DataFacts
    compute_bytes: int  # of a number in this machine's compute dtype: 4 for fp32, 2 for bf16

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Facts":
        return cls(ModelFacts.from_json(value["model"]), DataFacts.from_json(value["data"]), value["compute_bytes"])


def facts_key(config: Config, strict: bool) -> str:
    """A name for everything that the facts of this trial depend on, without opening the model or the data."""
    paths = [Path(p).expanduser() for p in (config.model.path, config.data.path) if p]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*")))]
    scorer = config.eval.scorer
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    asked = {
        "version": FACTS_VERSION,
        "machine": [platform.node(), *(os.environ.get(name) for name in VISIBLE_DEVICE_VARIABLES), uses_cpu(config)],
        "libraries": library_versions(),
        "strict": strict,
        "model": dataclasses.asdict(config.model),
        "data": dataclasses.asdict(config.data),
        "max_length": config.train.max_length,
        "held_out": [config.eval.split, config.eval.prompts, config.eval.validation_rows],
        "scorer": [scorer, config.eval.pattern, config.eval.labels, function_fingerprint(scorer)],  # tried on the rows
        "fixed_prompts": [dataclasses.asdict(prompt) for prompt in config.eval.fixed_prompts],
        "templates": config.eval.baseline_templates,
        "files": stats,
    }
    return short_hash(asked, 24)


def uses_cpu(config: Config) -> bool:
    """Whether the CPU is asked for where there may be an accelerator: a number has other bytes on it."""
    return config.launch.devices == "cpu" or os.environ.get("LORA_SWEEP_DEVICE") == "cpu"


@functools.cache
def library_versions() -> tuple[str, ...]:
    """Of the libraries whose word the facts and the accepted settings are. They stay while this process does."""
    return tuple(importlib.metadata.version(name) for name in ("transformers", "trl"))


def is_lasting(config: Config) -> bool:
    """Whether the same facts will hold tomorrow: a hub source without a commit can change unseen."""
    sources = (config.model, config.data)
    return all(s.path or not s.hub_id or re.fullmatch("[0-9a-f]{40}", s.revision or "") for s in sources)


def facts_file(config: Config, strict: bool) -> Path:
    """Where the facts of this trial are cached."""
    return cache_folder() / "facts" / f"{facts_key(config, strict)}.json"


def read_cached_facts(config: Config, strict: bool) -> Facts | None:
    """The facts of this trial when they are already known.

    Args:
        strict: everything that training needs must be at hand, and not only what a plan needs.
    """
    value = read_json(facts_file(config, strict))
    return Facts.from_json(value) if value else None
