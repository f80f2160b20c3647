"""Every check of a configuration, and its sentence."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.configs import changed, good

from lora_sweep.config.checks import check_config, check_sweep_name, check_template, refuse_unless
from lora_sweep.errors import Refused

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
