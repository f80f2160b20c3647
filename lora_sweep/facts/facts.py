"""Facts about a base model and a data set that can be found without weights: plain values, cached as JSON.

``model.inspect`` finds them once, in a separate process. Planning checks and sizes trials with these facts alone. This
module imports no torch. It opens no files except those of its cache.
"""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import short_hash
from lora_sweep.config.schema import Config
from lora_sweep.config.user_functions import fingerprint_function
from lora_sweep.runs.cache import cache_folder
from lora_sweep.runs.files import read_json

FACTS_VERSION = 3  # raise it when the same model or data would now give other facts
# Environment variables that decide which accelerators torch sees.
VISIBLE_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


@dataclass(frozen=True)
class Linear:
    """One matrix that LoRA can adapt.

    Attributes:
        name: its full path in the model, such as ``model.layers.0.mlp.up_proj``.
        bias: whether the layer has a bias.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a causal language model that follow from its architecture.

    Attributes:
        fingerprint: identifies the weights: a hash of the files, or repository@revision.
        attn, mlp: full names of the ``linears`` in these groups of ``lora.targets``.
        head: the full name of the output head; None if it is not a linear layer.
        tied_head: whether the head and the input embedding share one weight.
        total_params: number of parameters of the whole model.
        bias_params: number of parameters in all biases, including those of LayerNorms.
        max_positions: the config's limit on the tokens of a sequence; None if it has none.
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
    def from_json(cls, value: Mapping[str, Any]) -> "ModelFacts":
        return cls(**{**value, "linears": [Linear(**linear) for linear in value["linears"]]})


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data set under one template and one tokenizer.

    Lengths are in tokens. A fact is None where the data set or the tokenizer could not be loaded.

    Attributes:
        fingerprint: identifies the source: a file's sha256, or repository@revision.
        rows_fingerprint: changes when any row of any split changes.
        dropped: reason: how many records are in no split because of it.
        cut_rows: number of training rows that ``train.max_length`` cuts, so that their response loses its end.
        train_tokens: tokens of the training rows after cutting: one epoch.
        longest_row: prompt and response of the longest training row, before cutting.
        longest_prompt: the longest prompt of an evaluation.
        cut_validation_rows: the same as ``cut_rows``, for the rows of the validation loss.
    """

    fingerprint: str
    rows_fingerprint: str | None = None
    rows_read: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    cut_rows: int | None = None
    train_tokens: int | None = None
    longest_row: int | None = None
    longest_prompt: int | None = None
    cut_validation_rows: int | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DataFacts":
        return cls(**value)


@dataclass(frozen=True)
class Facts:
    """The facts about one model and one data set on this machine.

    Attributes:
        compute_bytes: bytes of one number in the compute dtype of this machine: 4 for fp32, 2 for bf16.
    """

    model: ModelFacts
    data: DataFacts
    compute_bytes: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Facts":
        return cls(ModelFacts.from_json(value["model"]), DataFacts.from_json(value["data"]), value["compute_bytes"])


def facts_key(config: Config, strict: bool) -> str:
    """A hash of everything that the facts of this trial depend on. Opens no file of the model or the data."""
    paths = [Path(p).expanduser() for p in (config.model.path, config.data.path) if p]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*")))]
    scorer = config.eval.scorer
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    inputs = {
        "version": FACTS_VERSION,
        "machine": [platform.node(), *(os.environ.get(name) for name in VISIBLE_DEVICE_VARIABLES), uses_cpu(config)],
        "libraries": library_versions(),
        "strict": strict,
        "model": dataclasses.asdict(config.model),
        "data": dataclasses.asdict(config.data),
        "max_length": config.train.max_length,
        "held_out": [config.eval.split, config.eval.prompts, config.eval.validation_rows],
        # The scorer is tried on the rows, so a refusal depends on it.
        "scorer": [scorer, config.eval.pattern, config.eval.labels, fingerprint_function(scorer)],
        "fixed_prompts": [dataclasses.asdict(prompt) for prompt in config.eval.fixed_prompts],
        "templates": config.eval.baseline_templates,
        "files": stats,
    }
    return short_hash(inputs, 24)


def uses_cpu(config: Config) -> bool:
    """Whether the user asks for the CPU even if there is an accelerator. The compute dtype depends on it."""
    return config.launch.devices == "cpu" or os.environ.get("LORA_SWEEP_DEVICE") == "cpu"


@functools.cache
def library_versions() -> tuple[str, ...]:
    """The versions of transformers and TRL: the facts depend on them, and so do the settings that are accepted."""
    return tuple(importlib.metadata.version(name) for name in ("transformers", "trl"))


def is_cacheable(config: Config) -> bool:
    """Whether the facts can be cached. A source on the hub may change, unless its revision is a commit."""
    sources = (config.model, config.data)
    return all(
        source.path or not source.hub_id or re.fullmatch("[0-9a-f]{40}", source.revision or "") for source in sources
    )


def facts_file(config: Config, strict: bool) -> Path:
    """The path in the cache of the facts of this trial."""
    return cache_folder() / "facts" / f"{facts_key(config, strict)}.json"


def read_cached_facts(config: Config, strict: bool) -> Facts | None:
    """The facts of this trial from the cache; None if they are not there.

    Args:
        strict: whether everything that training needs must be present, and not only what a plan needs.
    """
    value = read_json(facts_file(config, strict))
    return Facts.from_json(value) if value else None
