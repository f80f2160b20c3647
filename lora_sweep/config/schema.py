"""The schema of a trial: a tree of dataclasses, and the checks of their values.

Owns which keys exist and which values make sense on their own. Does not know what a model or a data set
looks like (``facts``), and holds no values for people: those are in ``conf/``. Hydra merges every file and
every override into this tree, so that a misspelt key fails at composition.
"""

import dataclasses
import importlib.util
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.errors import Refused

TARGET_GROUPS = ("attn", "mlp", "all_linear", "all_linear_and_head")
TEMPLATES = ("alpaca", "qa", "chat")
BUILT_IN_SCORERS = ("text", "exact_match", "label", "json", "regex")
TINY_SHAPES = ("llama", "gpt2", "phi3", "gpt_neox")
QUANT_BITS = {"none": None, "8bit": 8, "4bit": 4}
TRACKERS = {  # module: package; what a tracker needs beside the project's own dependencies
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "trackio": {"trackio": "trackio"},
}


def refuse_unless(ok: bool, where: str, value: Any, rule: str) -> None:
    """Raise :class:`Refused` as ``where = value: must be rule`` unless ``ok``."""
    if not ok:
        raise Refused(f"{where} = {value}", f"must be {rule}")


def is_positive(value: float) -> bool:
    """True for a finite number above zero (so not for NaN)."""
    return math.isfinite(value) and value > 0


@dataclass
class WheelFile:
    """One file inside a pinned wheel of the Python package index."""

    requirement: str = "???"  # name==version
    sha256: str = "???"  # of the wheel
    file: str = "???"  # path inside the wheel


@dataclass
class Model:
    """Which base model. Exactly one source counts, in this order: path, hub_id, wheel, tiny."""

    name: str = "???"
    path: str | None = None  # a folder in transformers' format
    hub_id: str | None = None
    revision: str | None = None  # of hub_id
    wheel: WheelFile | None = None  # a GGUF file, converted once
    tiny: str | None = None  # a random model of this shape, made on the spot
    architecture: dict[str, Any] = field(default_factory=dict)  # of hub_id: transformers' config, to plan without it

    def check(self) -> None:
        if not any((self.path, self.hub_id, self.wheel, self.tiny)):
            raise Refused("model", "has no source", ["model.path", "model.hub_id", "model.wheel", "model.tiny"])
        if self.tiny is not None and self.tiny not in TINY_SHAPES:
            raise Refused(f"model.tiny = {self.tiny}", "is no known shape", TINY_SHAPES, self.tiny)


@dataclass
class Columns:
    """Which column of the data plays which role; category and split may be null."""

    product: str = "product"
    category: str | None = "category"
    description: str = "description"
    split: str | None = None  # holds train, validation or test; null: split by hash


@dataclass
class Data:
    """Which rows, how they become prompts, and how they are split. One source, as for the model."""

    name: str = "???"
    licence: str | None = None  # shown in reports
    path: str | None = None  # .jsonl, .csv or .parquet
    hub_id: str | None = None
    revision: str | None = None
    wheel: WheelFile | None = None
    tiny: int | None = None  # this many made-up rows
    columns: Columns = field(default_factory=Columns)
    template: str = "alpaca"  # alpaca, qa, chat, or a text with {product} and {category}
    end_marker: str | None = None  # ends a response; null: the template's own
    sample: int | None = None  # draw this many rows first, as pandas.DataFrame.sample does
    sample_seed: int = 42
    split_seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    train_rows: int | None = None  # at most this many, in hash order
    default_rows: int | None = None  # where train_rows is null: a subset of an embedded source, none of one's own file

    def check(self) -> None:
        if not any((self.path, self.hub_id, self.wheel, self.tiny)):
            raise Refused("data", "has no source", ["data.path", "data.hub_id", "data.wheel", "data.tiny"])
        for name in ("sample", "train_rows", "default_rows", "tiny"):
            value = getattr(self, name)
            refuse_unless(value is None or value >= 1, f"data.{name}", value, "at least 1, or null")
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            refuse_unless(0 <= value < 1, f"data.{name}", value, "at least 0 and below 1")
        total = self.validation_fraction + self.test_fraction
        refuse_unless(total < 1, "data.validation_fraction + data.test_fraction", total, "below 1")
        check_template("data.template", self.template)


@dataclass
class Lora:
    """The adapter. Names and meanings are PEFT's LoraConfig's, with ``targets`` in front of target_modules."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    targets: Any = "attn"  # a group's name, or a list of module names

    def check(self) -> None:
        refuse_unless(self.r >= 1, "lora.r", self.r, "a whole number of at least 1")
        refuse_unless(is_positive(self.alpha), "lora.alpha", self.alpha, "above 0")
        refuse_unless(0 <= self.dropout < 1, "lora.dropout", self.dropout, "at least 0 and below 1")
        if self.bias not in ("none", "all", "lora_only"):
            raise Refused(f"lora.bias = {self.bias}", "is unknown", ("none", "all", "lora_only"), self.bias)
        if isinstance(self.targets, str):
            if self.targets not in TARGET_GROUPS:
                what = "is no target group (module names go in a list: lora.targets=[q_proj,v_proj])"
                raise Refused(f"lora.targets = {self.targets}", what, TARGET_GROUPS, self.targets)
        elif not (isinstance(self.targets, list) and self.targets and all(isinstance(t, str) for t in self.targets)):
            raise Refused(f"lora.targets = {self.targets}", "must be a target group or a list of module names")


@dataclass
class Quant:
    """How the frozen base weights are stored: 4 (NF4), 8 (LLM.int8) or null (the compute dtype)."""

    bits: int | None = None
    double_quant: bool = True
    materialize: str = "auto"  # dequantize each weight once, and keep it; or never, always: changes no number

    def check(self) -> None:
        refuse_unless(self.bits in QUANT_BITS.values(), "quant.bits", self.bits, "4, 8 or null")
        if (how := self.materialize) not in (ways := ("auto", "never", "always")):
            raise Refused(f"quant.materialize = {how}", "is unknown", ways, how)


SFT_OWNED = {  # SFTConfig keys that lora-sweep sets itself, beside those of Train, and what to use instead
    key: instead
    for instead, keys in {
        "runs_dir": "output_dir",
        "seed": "seed data_seed",
        "train.gradient_checkpointing": "activation_checkpointing",
        "train.loss_on": "completion_only_loss assistant_only_loss",
        "data.*": "dataset_kwargs",
        "data.columns.*": "dataset_text_field",
        "data.template": "chat_template_path",
        "model.* and quant.*": "model_init_kwargs",
        "eval.*": "eval_strategy",
        "tracking": "report_to run_name",
        "nothing: a row is a sequence": "packing padding_free",
        "nothing: the tokenizer's own": "eos_token pad_token",
        "nothing: every step is logged": "logging_steps logging_strategy logging_first_step disable_tqdm",
        "nothing: the loss is the mean negative log-likelihood": "loss_type label_smoothing_factor use_liger_kernel",
        "nothing: a non-finite loss ends the trial": "logging_nan_inf_filter",
        "train.checkpoint_steps": "save_strategy save_steps save_total_limit save_only_model enable_jit_checkpoint",
        "nothing: the dtype follows the device": "bf16 fp16",
        "nothing: the device is chosen by what is there": "use_cpu dataloader_pin_memory",
        "nothing: code from a model folder is never run": "trust_remote_code",
        "nothing: the same command resumes": "resume_from_checkpoint ignore_data_skip",
        "launch.on_oom": "auto_find_batch_size",
        "nothing: a trial stays on this machine": "push_to_hub hub_token push_to_hub_token hub_model_id",
    }.items()
    for key in keys.split()
}


@dataclass
class Train:
    """Fine-tuning. Names and meanings are those of TRL's SFTConfig, but for ``loss_on`` and ``sft``."""

    num_train_epochs: float = 1.0
    max_steps: int | None = None  # set: this many optimizer steps, whatever the epochs
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.0  # below 1: a share of all steps
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_length: int = 256  # tokens of prompt and response together
    loss_on: str = "response"  # or all
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    optim: str = "adamw_torch"
    train_sampling_strategy: str = "random"  # or group_by_length, sequential
    gradient_checkpointing: bool = False
    checkpoint_steps: int | None = None  # save every so many steps, to go on from after a kill; changes no number
    sft: dict[str, Any] = field(default_factory=dict)  # further SFTConfig keys, as they are

    def check(self) -> None:
        refuse_unless(is_positive(self.num_train_epochs), "train.num_train_epochs", self.num_train_epochs, "above 0")
        steps = self.max_steps
        refuse_unless(steps is None or steps >= 1, "train.max_steps", steps, "at least 1, or null")
        every = self.checkpoint_steps
        refuse_unless(every is None or every >= 1, "train.checkpoint_steps", every, "at least 1, or null")
        refuse_unless(is_positive(self.learning_rate), "train.learning_rate", self.learning_rate, "a number above 0")
        for name in ("max_grad_norm", "weight_decay", "warmup_steps"):
            value = getattr(self, name)
            refuse_unless(value == 0 or is_positive(value), f"train.{name}", value, "at least 0")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            refuse_unless(value >= 1, f"train.{name}", value, "a whole number of at least 1")
        refuse_unless(self.max_length >= 8, "train.max_length", self.max_length, "at least 8 tokens")
        if self.loss_on not in ("response", "all"):
            raise Refused(f"train.loss_on = {self.loss_on}", "is unknown", ("response", "all"), self.loss_on)
        for key, value in self.sft.items():
            if key in SFT_OWNED or hasattr(self, key):
                raise Refused(f"train.sft.{key}", f"is set by lora-sweep; use {SFT_OWNED.get(key, f'train.{key}')}")
            refuse_unless(not isinstance(value, float) or math.isfinite(value), f"train.sft.{key}", value, "finite")


@dataclass
class FixedPrompt:
    """A prompt without a reference text."""

    product: str = "???"
    category: str | None = None


@dataclass
class Eval:
    """What every trial writes, and how. Decoding names are those of transformers' GenerationConfig."""

    prompts: int = 12  # held-out prompts: the first of the split, in hash order
    validation_rows: int = 32  # the validation loss is over at most this many rows, in hash order
    fixed_prompts: list[FixedPrompt] = field(default_factory=list)  # further prompts, without a reference
    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 16
    quant: str = "same"  # or none, 8bit, 4bit: the base's bits while generating
    baseline_templates: list[str] = field(default_factory=list)  # forms for further baseline rows
    scorer: str = "text"  # what quality is: another of BUILT_IN_SCORERS, an entry point's name, or module:function
    pattern: str | None = None  # of regex: what its first group finds counts, or else all that it matches
    labels: list[str] = field(default_factory=list)  # of label; []: the references of the prompts
    split: str = "validation"  # the prompts' and the loss's; or test, which python -m sweep.confirm alone reads

    def check(self) -> None:
        for name in ("prompts", "validation_rows", "max_new_tokens", "batch_size"):
            refuse_unless(getattr(self, name) >= 1, f"eval.{name}", getattr(self, name), "at least 1")
        refuse_unless(is_positive(self.temperature), "eval.temperature", self.temperature, "above 0")
        refuse_unless(0 < self.top_p <= 1, "eval.top_p", self.top_p, "above 0 and at most 1")
        if self.quant not in ("same", *QUANT_BITS):
            raise Refused(f"eval.quant = {self.quant}", "is unknown", ("same", *QUANT_BITS), self.quant)
        if self.split not in ("validation", "test"):
            raise Refused(f"eval.split = {self.split}", "is unknown", ("validation", "test"), self.split)
        for template in self.baseline_templates:
            check_template("eval.baseline_templates", template)


@dataclass
class Tracking:
    """Where the mirror of the results goes. Nothing is ever read back from it."""

    backend: str = "wandb"  # or mlflow, trackio, none
    project: str = "lora-sweep"
    entity: str | None = None
    mode: str = "auto"  # online when logged in, else offline; or online, offline

    def check(self) -> None:
        backends = ("wandb", "mlflow", "trackio", "none")
        for key, allowed in (("backend", backends), ("mode", ("auto", "online", "offline"))):
            value = getattr(self, key)
            if value not in allowed:
                raise Refused(f"tracking.{key} = {value}", "is unknown", allowed, value)
        packages = TRACKERS.get(self.backend, {})
        if not all(importlib.util.find_spec(module) for module in packages):  # 0.1 ms each; imports none
            raise Refused(f"tracking.backend = {self.backend}", f"needs: pip install {' '.join(packages.values())}")


@dataclass
class Launch:
    """How the orchestrator runs trials. Changes no number of any trial, and is the same for a whole sweep."""

    devices: Any = "auto"  # every accelerator, or the CPU where there is none; cpu; or a list of indices, [0,1]
    workers: int | None = None  # processes at once; null: one a device
    pack: Any = "auto"  # trials of one base that share a process and its products: as many as fit, or at most so many
    trial_minutes: float | None = None  # a trial that takes longer is a timeout
    stall_minutes: float | None = 30.0  # without a step, a text or a word for longer, a trial is a timeout
    grace_seconds: float = 30.0  # between the request to stop and the kill
    on_oom: str = "record"  # or halve_batch: try again with half the batch and twice the accumulation
    retry: str | None = None  # failed: try again what ended other than complete
    strict: bool = False  # refuse the whole sweep for one bad point, instead of a row `invalid`

    def check(self) -> None:
        if isinstance(self.devices, str):
            if self.devices not in ("auto", "cpu"):
                raise Refused(f"launch.devices = {self.devices}", "is unknown", ("auto", "cpu", "[0,1]"), self.devices)
        else:
            named = self.devices if isinstance(self.devices, list) else []
            unique = all(type(i) is int and i >= 0 for i in named) and len(set(named)) == len(named) > 0
            refuse_unless(unique, "launch.devices", self.devices, "auto, cpu, or a list of different indices, as [0,1]")
        refuse_unless(self.workers is None or self.workers >= 1, "launch.workers", self.workers, "at least 1, or null")
        fits = self.pack == "auto" or (type(self.pack) is int and self.pack >= 1)
        refuse_unless(fits, "launch.pack", self.pack, "auto, or a whole number of at least 1")
        for name in ("trial_minutes", "stall_minutes"):
            value = getattr(self, name)
            refuse_unless(value is None or is_positive(value), f"launch.{name}", value, "above 0, or null")
        grace = self.grace_seconds
        refuse_unless(grace == 0 or is_positive(grace), "launch.grace_seconds", grace, "at least 0")
        if self.on_oom not in ("record", "halve_batch"):
            raise Refused(f"launch.on_oom = {self.on_oom}", "is unknown", ("record", "halve_batch"), self.on_oom)
        if self.retry not in (None, "failed"):
            raise Refused(f"launch.retry = {self.retry}", "is unknown", ("null", "failed"), self.retry)


@dataclass
class Config:
    """A trial, complete."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    lora: Lora = field(default_factory=Lora)
    quant: Quant = field(default_factory=Quant)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    tracking: Tracking = field(default_factory=Tracking)
    launch: Launch = field(default_factory=Launch)
    seed: int = 0
    runs_dir: str = "runs"
    sweep_name: str | None = None

    def check(self) -> None:
        """Every check that needs neither the model nor the data.

        Raises:
            Refused: naming the first key whose value cannot work.
        """
        groups = (self.model, self.data, self.lora, self.quant, self.train, self.eval, self.tracking, self.launch)
        for group in groups:
            group.check()
        refuse_unless(self.seed >= 0, "seed", self.seed, "at least 0")
        check_sweep_name(self.sweep_name)

    def eval_bits(self) -> int | None:
        """Bits of the base while generating: 4, 8, or None for the compute dtype."""
        return self.quant.bits if self.eval.quant == "same" else QUANT_BITS[self.eval.quant]


def register_schema() -> None:
    """Make the tree known to Hydra as ``schema``, the first entry of conf/base.yaml's defaults."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def config_from_json(value: dict[str, Any]) -> Config:
    """The config whose ``dataclasses.asdict`` is ``value``."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), value))
    assert isinstance(config, Config)
    return config


def settle(config: Config) -> Config:
    """A copy in which a path that was typed replaces the source of its group's file, and names it."""
    model, data = config.model, config.data
    if model.path:
        model = Model(name=Path(model.path).expanduser().resolve().name, path=model.path)
    if data.path:
        data = dataclasses.replace(data, name=Path(data.path).name, licence=None, hub_id=None, revision=None)
        data = dataclasses.replace(data, wheel=None, tiny=None, default_rows=None)
    return dataclasses.replace(config, model=model, data=data)


def check_template(where: str, template: str) -> None:
    """Refuse a template that is neither a known name nor a text with the field {product}."""
    if template in TEMPLATES:
        return
    fields = set(re.findall(r"{(\w*)}", template))
    if not fields:
        what = "is neither a template's name nor a text with the field {product}"
        raise Refused(f"{where} = {template!r}", what, TEMPLATES, template)
    if unknown := sorted(fields - {"product", "category"}):
        raise Refused(where, f"has an unknown field {{{unknown[0]}}}", ("{product}", "{category}"), f"{{{unknown[0]}}}")
    if "product" not in fields:
        raise Refused(where, "lacks the field {product}: every prompt would be the same")


def check_sweep_name(name: str | None) -> None:
    """Refuse a sweep name that could be a path or a surprise in one."""
    ok = name is None or bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name))
    refuse_unless(ok, "sweep_name", repr(name), "1 to 80 letters, digits, '.', '_' or '-', not starting with '.'")
