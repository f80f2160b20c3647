"""config: every check and its sentence, and what makes two trials or two evaluations the same one."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf.errors import ConfigKeyError, ValidationError

from lora_sweep.config.checks import check_config, check_sweep_name, check_template, refuse_unless
from lora_sweep.config.identity import (
    base_identity,
    baseline_identity,
    eval_identity,
    short_hash,
    to_canonical_json,
    trial_identity,
)
from lora_sweep.config.schema import Config, FixedPrompt, WheelFile, apply_typed_paths, config_from_json
from lora_sweep.errors import Refused


def good() -> Config:
    """A trial with every source, so that each of its keys has a value or a place for one."""
    config = Config()
    config.model.name, config.model.tiny = "tiny", "llama"
    config.data.name, config.data.tiny = "tiny", 120
    return config


def changed(config: Config, path: str, value: Any) -> Config:
    """A copy of ``config`` with one value, at a dotted path, replaced."""
    config = copy.deepcopy(config)
    *groups, last = path.split(".")
    node: Any = config
    for group in groups:
        node = getattr(node, group)
    assert hasattr(node, last)
    setattr(node, last, value)
    return config


def trial_id(config: Config, modules: tuple[str, ...] = ("q_proj", "v_proj")) -> str:
    return short_hash(trial_identity(config, "model-1", "data-1", list(modules)))


def eval_id(config: Config) -> str:
    return short_hash(eval_identity(config))


# --- checks ------------------------------------------------------------------------------------------------------

DEVICES = "must be auto, cpu, or a list of different indices, as [0,1]"
REFUSED: list[tuple[str, Any, str]] = [
    (
        "model.tiny",
        "lama",
        "model.tiny = lama: is no known shape; did you mean 'llama'?; allowed: llama, gpt2, phi3, gpt_neox",
    ),
    ("data.tiny", -1, "data.tiny = -1: must be at least 1, or null"),
    ("data.sample", 0, "data.sample = 0: must be at least 1, or null"),
    ("data.train_rows", 0, "data.train_rows = 0: must be at least 1, or null"),
    ("data.validation_fraction", 1.0, "data.validation_fraction = 1.0: must be at least 0 and below 1"),
    ("data.validation_fraction", -0.1, "data.validation_fraction = -0.1: must be at least 0 and below 1"),
    ("data.validation_fraction", math.nan, "data.validation_fraction = nan: must be at least 0 and below 1"),
    ("data.test_fraction", 1.5, "data.test_fraction = 1.5: must be at least 0 and below 1"),
    ("data.test_fraction", 0.9, "data.validation_fraction + data.test_fraction = 1.0: must be below 1"),
    (
        "data.template",
        "alpacca",
        (
            "data.template = 'alpacca': is neither a template's name nor a text with the field {product}; "
            "did you mean 'alpaca'?; allowed: alpaca, qa, chat"
        ),
    ),
    (
        "data.template",
        "{produkt}: ",
        "data.template: has an unknown field {produkt}; did you mean '{product}'?; allowed: {product}, {category}",
    ),
    (
        "data.template",
        "Write it down: ",
        (
            "data.template = 'Write it down: ': is neither a template's name nor a text with the field {product}; "
            "allowed: alpaca, qa, chat"
        ),
    ),
    (
        "data.template",
        "{product} in {colour}: ",
        "data.template: has an unknown field {colour}; allowed: {product}, {category}",
    ),
    ("data.template", "{product} {}: ", "data.template: has an unknown field {}; allowed: {product}, {category}"),
    ("data.template", "A {category}:", "data.template: lacks the field {product}: every prompt would be the same"),
    ("lora.r", 0, "lora.r = 0: must be a whole number of at least 1"),
    ("lora.r", -8, "lora.r = -8: must be a whole number of at least 1"),
    ("lora.alpha", 0.0, "lora.alpha = 0.0: must be above 0"),
    ("lora.alpha", -1.0, "lora.alpha = -1.0: must be above 0"),
    ("lora.alpha", math.inf, "lora.alpha = inf: must be above 0"),
    ("lora.dropout", 1.0, "lora.dropout = 1.0: must be at least 0 and below 1"),
    ("lora.dropout", 5.0, "lora.dropout = 5.0: must be at least 0 and below 1"),
    ("lora.dropout", -0.1, "lora.dropout = -0.1: must be at least 0 and below 1"),
    ("lora.dropout", math.nan, "lora.dropout = nan: must be at least 0 and below 1"),
    ("lora.bias", "lora", "lora.bias = lora: is unknown; did you mean 'lora_only'?; allowed: none, all, lora_only"),
    (
        "lora.targets",
        "all_liner",
        (
            "lora.targets = all_liner: is no target group (module names go in a list: lora.targets=[q_proj,v_proj]); "
            "did you mean 'all_linear'?; allowed: attn, mlp, all_linear, all_linear_and_head"
        ),
    ),
    ("lora.targets", [], "lora.targets = []: must be a target group or a list of module names"),
    ("lora.targets", ["q_proj", 3], "lora.targets = ['q_proj', 3]: must be a target group or a list of module names"),
    ("lora.targets", None, "lora.targets = None: must be a target group or a list of module names"),
    ("quant.bits", 3, "quant.bits = 3: must be 4, 8 or null"),
    ("quant.bits", 16, "quant.bits = 16: must be 4, 8 or null"),
    ("train.num_train_epochs", 0.0, "train.num_train_epochs = 0.0: must be above 0"),
    ("train.num_train_epochs", math.nan, "train.num_train_epochs = nan: must be above 0"),
    ("train.max_steps", 0, "train.max_steps = 0: must be at least 1, or null"),
    ("train.checkpoint_steps", 0, "train.checkpoint_steps = 0: must be at least 1, or null"),
    ("train.learning_rate", 0.0, "train.learning_rate = 0.0: must be a number above 0"),
    ("train.learning_rate", -1e-4, "train.learning_rate = -0.0001: must be a number above 0"),
    ("train.learning_rate", math.nan, "train.learning_rate = nan: must be a number above 0"),
    ("train.learning_rate", math.inf, "train.learning_rate = inf: must be a number above 0"),
    ("train.max_grad_norm", -1.0, "train.max_grad_norm = -1.0: must be at least 0"),
    ("train.max_grad_norm", math.nan, "train.max_grad_norm = nan: must be at least 0"),
    ("train.weight_decay", -0.1, "train.weight_decay = -0.1: must be at least 0"),
    ("train.warmup_steps", -1.0, "train.warmup_steps = -1.0: must be at least 0"),
    (
        "train.per_device_train_batch_size",
        0,
        "train.per_device_train_batch_size = 0: must be a whole number of at least 1",
    ),
    (
        "train.gradient_accumulation_steps",
        0,
        "train.gradient_accumulation_steps = 0: must be a whole number of at least 1",
    ),
    ("train.max_length", 7, "train.max_length = 7: must be at least 8 tokens"),
    (
        "train.loss_on",
        "respons",
        "train.loss_on = respons: is unknown; did you mean 'response'?; allowed: response, all",
    ),
    ("train.sft", {"seed": 3}, "train.sft.seed: is set by lora-sweep; use seed"),
    ("train.sft", {"max_length": 512}, "train.sft.max_length: is set by lora-sweep; use train.max_length"),
    (
        "train.sft",
        {"neftune_noise_alpha": 5, "packing": True},
        "train.sft.packing: is set by lora-sweep; use nothing: a row is a sequence",
    ),
    ("eval.prompts", 0, "eval.prompts = 0: must be at least 1"),
    ("eval.validation_rows", 0, "eval.validation_rows = 0: must be at least 1"),
    ("eval.max_new_tokens", 0, "eval.max_new_tokens = 0: must be at least 1"),
    ("eval.batch_size", 0, "eval.batch_size = 0: must be at least 1"),
    ("eval.temperature", 0.0, "eval.temperature = 0.0: must be above 0"),
    ("eval.top_p", 0.0, "eval.top_p = 0.0: must be above 0 and at most 1"),
    ("eval.top_p", 1.1, "eval.top_p = 1.1: must be above 0 and at most 1"),
    ("eval.quant", "8bits", "eval.quant = 8bits: is unknown; did you mean '8bit'?; allowed: same, none, 8bit, 4bit"),
    ("eval.split", "train", "eval.split = train: is unknown; allowed: validation, test"),
    (
        "eval.baseline_templates",
        ["qa", "caht"],
        (
            "eval.baseline_templates = 'caht': is neither a template's name nor a text with the field {product}; "
            "did you mean 'chat'?; allowed: alpaca, qa, chat"
        ),
    ),
    (
        "tracking.backend",
        "wanbd",
        "tracking.backend = wanbd: is unknown; did you mean 'wandb'?; allowed: wandb, mlflow, trackio, none",
    ),
    (
        "tracking.mode",
        "ofline",
        "tracking.mode = ofline: is unknown; did you mean 'offline'?; allowed: auto, online, offline",
    ),
    (
        "launch.devices",
        "cpus",
        "launch.devices = cpus: is unknown; did you mean 'cpu'?; allowed: auto, cpu, [0,1]",
    ),
    ("launch.devices", [], f"launch.devices = []: {DEVICES}"),
    ("launch.devices", [0, 0], f"launch.devices = [0, 0]: {DEVICES}"),
    ("launch.devices", [-1], f"launch.devices = [-1]: {DEVICES}"),
    ("launch.devices", [True], f"launch.devices = [True]: {DEVICES}"),
    ("launch.devices", ["cpu"], f"launch.devices = ['cpu']: {DEVICES}"),
    ("launch.devices", 0, f"launch.devices = 0: {DEVICES}"),
    ("launch.devices", None, f"launch.devices = None: {DEVICES}"),
    ("launch.workers", 0, "launch.workers = 0: must be at least 1, or null"),
    ("launch.pack", 0, "launch.pack = 0: must be auto, or a whole number of at least 1"),
    ("launch.pack", True, "launch.pack = True: must be auto, or a whole number of at least 1"),
    ("launch.pack", 1.5, "launch.pack = 1.5: must be auto, or a whole number of at least 1"),
    ("launch.pack", "all", "launch.pack = all: must be auto, or a whole number of at least 1"),
    ("launch.pack", None, "launch.pack = None: must be auto, or a whole number of at least 1"),
    (
        "quant.materialize",
        "alway",
        "quant.materialize = alway: is unknown; did you mean 'always'?; allowed: auto, never, always",
    ),
    ("launch.trial_minutes", 0.0, "launch.trial_minutes = 0.0: must be above 0, or null"),
    ("launch.trial_minutes", math.nan, "launch.trial_minutes = nan: must be above 0, or null"),
    ("launch.stall_minutes", -1.0, "launch.stall_minutes = -1.0: must be above 0, or null"),
    ("launch.stall_minutes", math.inf, "launch.stall_minutes = inf: must be above 0, or null"),
    ("launch.grace_seconds", -1.0, "launch.grace_seconds = -1.0: must be at least 0"),
    ("launch.grace_seconds", math.nan, "launch.grace_seconds = nan: must be at least 0"),
    (
        "launch.on_oom",
        "halve",
        "launch.on_oom = halve: is unknown; did you mean 'halve_batch'?; allowed: record, halve_batch",
    ),
    ("launch.retry", "fail", "launch.retry = fail: is unknown; did you mean 'failed'?; allowed: null, failed"),
    ("seed", -1, "seed = -1: must be at least 0"),
    (
        "sweep_name",
        "../x",
        "sweep_name = '../x': must be 1 to 80 letters, digits, '.', '_' or '-', not starting with '.'",
    ),
]


def test_the_config_that_the_refusals_start_from_is_fine() -> None:
    check_config(good())


@pytest.mark.parametrize(("path", "value", "sentence"), REFUSED, ids=[f"{p}={v}" for p, v, _ in REFUSED])
def test_a_value_that_cannot_work_is_refused_in_one_sentence(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        check_config(changed(good(), path, value))
    assert str(caught.value) == sentence


@pytest.mark.parametrize("key", ["logging_strategy", "loss_type", "hub_token"])
def test_settings_of_the_trainer_that_would_be_ignored_are_refused(key: str) -> None:
    with pytest.raises(Refused, match=rf"^train\.sft\.{key}: is set by lora-sweep; use nothing: "):
        check_config(changed(good(), "train.sft", {key: "no"}))


@pytest.mark.parametrize("group", ["model", "data"])
def test_a_group_without_a_source_is_refused(group: str) -> None:
    with pytest.raises(Refused) as caught:
        check_config(changed(good(), f"{group}.tiny", None))
    sources = ", ".join(f"{group}.{name}" for name in ("path", "hub_id", "wheel", "tiny"))
    assert str(caught.value) == f"{group}: has no source; allowed: {sources}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lora.r", 1),
        ("lora.alpha", 0.5),
        ("lora.dropout", 0.0),
        ("lora.targets", ["q_proj"]),
        ("lora.targets", "all_linear_and_head"),
        ("quant.bits", 4),
        ("data.validation_fraction", 0.0),
        ("data.template", "Write about {product} ({category}):"),
        ("train.max_grad_norm", 0.0),
        ("train.max_length", 8),
        ("train.sft", {"neftune_noise_alpha": 5}),
        ("eval.quant", "none"),
        ("eval.split", "test"),
        ("train.checkpoint_steps", 1),
        ("launch.devices", "cpu"),
        ("launch.devices", [1, 0]),
        ("launch.workers", 1),
        ("launch.pack", 4),
        ("quant.materialize", "always"),
        ("launch.trial_minutes", 0.1),
        ("launch.stall_minutes", None),
        ("launch.grace_seconds", 0.0),
        ("launch.on_oom", "halve_batch"),
        ("launch.retry", "failed"),
        ("seed", 0),
    ],
)
def test_values_at_the_edge_of_what_works_are_taken(path: str, value: Any) -> None:
    check_config(changed(good(), path, value))


def test_every_group_is_checked() -> None:
    groups = [name for name, value in vars(good()).items() if dataclasses.is_dataclass(value)]
    assert {path.partition(".")[0] for path, _, _ in REFUSED if "." in path} == set(groups)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/etc/passwd", "", ".hidden", "..", "-x", "a b", "a\n", "ä", "x" * 81, "a\\b", "a\0", "${x}"],
)
def test_sweep_names_that_could_be_paths_or_surprises_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="sweep_name = "):
        check_sweep_name(name)


@pytest.mark.parametrize("name", [None, "demo", "demo-2", "v1.0_b", "7", "x" * 80])
def test_sweep_names_for_people_are_taken(name: str | None) -> None:
    check_sweep_name(name)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=6))
def test_no_accepted_sweep_name_leaves_its_folder(name: str) -> None:
    try:
        check_sweep_name(name)
    except Refused:
        return
    assert "/" not in name
    assert "\\" not in name
    assert not name.startswith(".")


def test_a_template_check_names_the_key_that_it_is_for() -> None:
    with pytest.raises(Refused, match=r"^here: lacks the field"):
        check_template("here", "{category}")
    check_template("here", 'JSON like {"name": {product}} keeps its braces')


def test_a_refused_value_is_shown_as_it_is() -> None:
    refuse_unless(True, "a.b", 3, "odd")
    with pytest.raises(Refused, match=r"^a\.b = 4: must be odd$"):
        refuse_unless(False, "a.b", 4, "odd")


# --- reading a config back ---------------------------------------------------------------------------------------


def test_a_config_survives_json() -> None:
    config = good()
    config.model.wheel = WheelFile("a==1", "00", "a/b.gguf")
    config.model.architecture = {"model_type": "llama", "layers": [1, 2], "rope": {"theta": 1e4}}
    config.lora.targets = ["q_proj", "v_proj"]
    config.quant.bits = 4
    config.train.sft = {"neftune_noise_alpha": 5.0}
    config.eval.fixed_prompts = [FixedPrompt("mouse", "input"), FixedPrompt("lamp")]
    config.sweep_name = "demo"
    assert config_from_json(dataclasses.asdict(config)) == config


def test_absent_keys_have_the_schema_s_values_and_unknown_ones_are_an_error() -> None:
    partial = config_from_json({"model": {"name": "m"}, "data": {"name": "d"}, "lora": {"r": 4}})
    assert partial.lora == dataclasses.replace(Config().lora, r=4)
    with pytest.raises(ConfigKeyError, match="rr"):
        config_from_json({"lora": {"rr": 4}})


@pytest.mark.parametrize(
    ("group", "key", "value"), [("lora", "r", 2.5), ("lora", "r", "eight"), ("train", "learning_rate", "fast")]
)
def test_a_value_of_another_type_is_no_config(group: str, key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        config_from_json({group: {key: value}})


# --- identity ----------------------------------------------------------------------------------------------------

THE_FINGERPRINT_COUNTS = "the fingerprint of the source stands in the identity, so a file may be renamed or moved"
A_MIRROR = "where results go and what they are called changes none of them"
A_WAY_TO_RUN = "changes no number of a trial"
WRITES_AFTER_TRAINING = "belongs to an evaluation of the adapter, which has its own identity"

# What a trial's identity leaves out, and why. Whatever is not named here must be in it.
NOT_IN_A_TRIAL = {
    "model": "model_fingerprint stands for the weights",
    "data.name": THE_FINGERPRINT_COUNTS,
    "data.licence": "is shown, and changes no row",
    "data.path": THE_FINGERPRINT_COUNTS,
    "data.hub_id": THE_FINGERPRINT_COUNTS,
    "data.revision": THE_FINGERPRINT_COUNTS,
    "data.wheel": THE_FINGERPRINT_COUNTS,
    "lora.targets": "the modules that it resolves to stand for it: attn and [q_proj,v_proj] are one trial",
    "quant.materialize": "computes with the same numbers, unpacked once and kept",
    "train.gradient_checkpointing": "computes the same numbers a second time to save memory",
    "train.checkpoint_steps": "saves what is there, and changes no number",
    "eval": WRITES_AFTER_TRAINING,
    "tracking": A_MIRROR,
    "launch": A_WAY_TO_RUN,
    "runs_dir": A_MIRROR,
    "sweep_name": A_MIRROR,
}
# The same for an evaluation, which lies in its trial's folder.
NOT_IN_AN_EVALUATION = {
    "model": "in the trial's identity",
    "data": "in the trial's identity",
    "lora": "in the trial's identity",
    "quant.double_quant": "in the trial's identity",
    "quant.materialize": "computes with the same numbers, unpacked once and kept",
    "eval.baseline_templates": "makes further baselines",
    "tracking": A_MIRROR,
    "launch": A_WAY_TO_RUN,
    "runs_dir": A_MIRROR,
    "sweep_name": A_MIRROR,
}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a tree of dataclasses that is no dataclass."""
    for name in (field.name for field in dataclasses.fields(node)):
        value = getattr(node, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def another(value: Any) -> Any:
    """A value of the same kind that means something else. None may become anything: identity checks no type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return f"{value}-2"


def is_named(path: str, names: dict[str, str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


LEAVES = dict(leaves(good()))


@pytest.mark.parametrize("path", LEAVES)
def test_a_trial_s_id_changes_with_every_key_that_can_change_the_adapter(path: str) -> None:
    config = changed(good(), "quant.bits", 4)  # where double quantization means something
    value = dict(leaves(config))[path]
    other = changed(config, path, 8 if path == "quant.bits" else another(value))
    assert (trial_id(other) != trial_id(config)) == (not is_named(path, NOT_IN_A_TRIAL))


def test_the_same_rows_are_one_trial_whoever_limits_them() -> None:
    default = changed(good(), "data.default_rows", 64)
    assert trial_id(changed(good(), "data.train_rows", 64)) == trial_id(default)
    assert trial_id(changed(default, "data.train_rows", 32)) != trial_id(default)


@pytest.mark.parametrize("bits", [None, 8])
def test_double_quantization_names_no_trial_whose_base_has_none(bits: int | None) -> None:
    config = changed(good(), "quant.bits", bits)
    assert trial_id(changed(config, "quant.double_quant", False)) == trial_id(config)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("path", LEAVES)
def test_an_evaluation_s_id_changes_with_every_key_that_can_change_what_is_written(path: str, sampling: bool) -> None:
    config = changed(good(), "eval.do_sample", sampling)
    config.quant.bits = 4
    reasons = NOT_IN_AN_EVALUATION | dict.fromkeys(
        (key for key in LEAVES if key.startswith("train.") and key != "train.max_length"), "in the trial's identity"
    )
    if not sampling:
        greedy = ("seed", "eval.temperature", "eval.top_p", "eval.batch_size")
        reasons |= dict.fromkeys(greedy, "greedy decoding draws nothing")
    before = eval_id(config)
    value = dict(leaves(config))[path]
    if path == "eval.quant":
        other = changed(config, path, "8bit")
    elif path == "quant.bits":
        other = changed(config, path, 8)
    else:
        other = changed(config, path, another(value))
    assert (eval_id(other) != before) == (not is_named(path, reasons))


@pytest.mark.parametrize("reasons", [NOT_IN_A_TRIAL, NOT_IN_AN_EVALUATION])
def test_no_exception_is_for_a_key_that_is_gone(reasons: dict[str, str]) -> None:
    for name in reasons:
        assert any(is_named(path, {name: ""}) for path in LEAVES), name


@pytest.mark.parametrize(
    ("path", "one", "same"),
    [
        ("train.learning_rate", 1e-4, 0.0001),
        ("lora.alpha", 8, 8.0),
        ("train.num_train_epochs", 3, 3.0),
        ("train.warmup_steps", 0, 0.0),
    ],
)
def test_two_spellings_of_a_number_are_one_trial(path: str, one: float, same: float) -> None:
    assert trial_id(changed(good(), path, one)) == trial_id(changed(good(), path, same))


def batches(batch: int, accumulated: int) -> Config:
    config = changed(good(), "train.per_device_train_batch_size", batch)
    return changed(config, "train.gradient_accumulation_steps", accumulated)


def test_the_batch_counts_as_a_whole() -> None:
    assert trial_id(batches(4, 2)) == trial_id(batches(8, 1)) == trial_id(batches(1, 8))
    assert trial_id(batches(4, 2)) != trial_id(batches(4, 1))
    assert trial_id(batches(4, 2)) != trial_id(batches(4, 4))


def test_of_epochs_and_steps_the_one_that_counts_is_in_the_identity() -> None:
    steps = changed(good(), "train.max_steps", 8)
    assert trial_id(steps) != trial_id(good())
    assert trial_id(changed(steps, "train.num_train_epochs", 9.0)) == trial_id(steps)
    assert trial_id(changed(steps, "train.max_steps", 9)) != trial_id(steps)


def test_target_modules_are_a_set() -> None:
    assert trial_id(good(), ("v_proj", "q_proj")) == trial_id(good(), ("q_proj", "v_proj"))
    assert trial_id(good(), ("q_proj",)) != trial_id(good(), ("q_proj", "v_proj"))
    listed = changed(good(), "lora.targets", ["q_proj", "v_proj"])
    assert trial_id(listed) == trial_id(good())


def test_a_trial_s_id_changes_with_the_model_and_the_data() -> None:
    def identity(model: str, data: str) -> str:
        return short_hash(trial_identity(good(), model, data, ["q_proj"]))

    ids = {identity("m", "d"), identity("n", "d"), identity("m", "e"), identity("d", "m")}
    assert len(ids) == 4


def test_identity_changes_no_config() -> None:
    config = good()
    trial_identity(config, "m", "d", ["q_proj"])
    baseline_identity(config, "m", "d", "qa")
    eval_identity(config)
    assert config == good()


def test_an_evaluation_at_the_trial_s_own_bits_is_the_one_at_these_bits_by_name() -> None:
    trained_at_4 = changed(good(), "quant.bits", 4)
    assert eval_id(trained_at_4) == eval_id(changed(trained_at_4, "eval.quant", "4bit"))
    assert eval_id(trained_at_4) != eval_id(changed(trained_at_4, "eval.quant", "8bit"))
    assert eval_id(good()) == eval_id(changed(good(), "eval.quant", "none"))
    fixed = changed(trained_at_4, "eval.quant", "8bit")
    assert eval_id(fixed) == eval_id(changed(fixed, "quant.bits", None))


@pytest.mark.parametrize(
    ("bits", "quant", "expected"),
    [(None, "same", None), (4, "same", 4), (4, "8bit", 8), (8, "none", None), (None, "4bit", 4)],
)
def test_bits_of_the_base_while_generating(bits: int | None, quant: str, expected: int | None) -> None:
    config = changed(changed(good(), "quant.bits", bits), "eval.quant", quant)
    assert config.eval_bits() == expected


def baseline_id(config: Config, template: str = "alpaca") -> str:
    return short_hash(baseline_identity(config, "model-1", "data-1", template))


def test_trials_that_differ_in_training_alone_share_their_baseline() -> None:
    for path, value in (("lora.r", 2), ("lora.targets", "mlp"), ("train.learning_rate", 1.0), ("seed", 7)):
        assert baseline_id(changed(good(), path, value)) == baseline_id(good()), path


def test_a_baseline_is_of_a_template_of_rows_and_of_the_bits_that_it_generates_with() -> None:
    assert baseline_id(good(), "qa") != baseline_id(good(), "alpaca")
    assert baseline_id(good(), "qa") == baseline_id(changed(good(), "data.template", "chat"), "qa")
    assert baseline_id(changed(good(), "data.split_seed", 1)) != baseline_id(good())
    assert baseline_id(changed(good(), "quant.bits", 4)) != baseline_id(good())
    four, eight = (changed(changed(good(), "quant.bits", bits), "eval.quant", "8bit") for bits in (4, 8))
    assert baseline_id(four) == baseline_id(eight)


def test_a_trial_is_never_taken_for_its_baseline() -> None:
    base = base_identity(good(), "m", "d")
    trial, baseline = trial_identity(good(), "m", "d", []), baseline_identity(good(), "m", "d", "alpaca")
    assert trial["kind"] == "trial"
    assert baseline["kind"] == "baseline"
    assert baseline["data"] == trial["data"] == base["data"]


# --- the canonical form ------------------------------------------------------------------------------------------


def test_the_canonical_form_has_one_spelling() -> None:
    assert (
        to_canonical_json({"b": 8.0, "a": [1e-4, (1, None)], "c": {2: True}})
        == '{"a":[0.0001,[1,null]],"b":8,"c":{"2":true}}'
    )
    assert to_canonical_json(0.0001) == to_canonical_json(1e-4) == "0.0001"
    assert to_canonical_json("8") != to_canonical_json(8)
    assert to_canonical_json(True) != to_canonical_json(1)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_has_no_hash(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        short_hash({"x": number})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_equal_values_have_equal_hashes_in_any_order(value: Any) -> None:
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(sub) for key, sub in reversed(item.items())}
        if isinstance(item, list):
            return [turned(sub) for sub in item]
        as_float: Callable[[int], float] = float
        is_exact = isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**53
        return as_float(item) if is_exact else item

    assert short_hash(turned(value)) == short_hash(value)


def test_a_hash_is_short_and_hexadecimal() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", short_hash({"a": 1}))
    assert short_hash({"a": 1}, 24).startswith(short_hash({"a": 1}))


# --- what a typed path replaces ----------------------------------------------------------------------------------


def test_a_typed_path_replaces_the_source_of_its_group_and_names_it() -> None:
    config = good()
    config.model.path, config.model.hub_id = "/models/mine/", "a/b"
    config.data.path, config.data.licence, config.data.default_rows = "rows/mine.csv", "theirs", 64
    config.data.columns.product = "title"
    settled = apply_typed_paths(config)
    assert (settled.model.name, settled.model.hub_id, settled.model.tiny) == ("mine", None, None)
    assert (settled.data.name, settled.data.licence, settled.data.tiny) == ("mine.csv", None, None)
    assert settled.data.default_rows is None, "the embedded subset's size would cut one's own rows"
    assert settled.data.columns.product == "title"
    assert config.data.name == "tiny", "the original changed"
    assert apply_typed_paths(good()) == good()
