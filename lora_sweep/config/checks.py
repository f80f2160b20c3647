"""Checks of a configuration that need neither the model nor the data: which values make sense on their own."""

import importlib.util
import math
import re
from typing import Any

from lora_sweep.config.schema import (
    QUANT_BITS,
    TARGET_GROUPS,
    TEMPLATES,
    TINY_SHAPES,
    TRACKER_PACKAGES,
    Config,
    Data,
    Eval,
    Launch,
    Lora,
    Model,
    Quant,
    Tracking,
    Train,
)
from lora_sweep.config.sft_keys import OWNED_SFT_KEYS
from lora_sweep.errors import Refused


def check_config(config: Config) -> None:
    """Check every value of a configuration.

    Raises:
        Refused: names the first key whose value cannot work.
    """
    check_model(config.model)
    check_data(config.data)
    check_lora(config.lora)
    check_quant(config.quant)
    check_train(config.train)
    check_eval(config.eval)
    check_tracking(config.tracking)
    check_launch(config.launch)
    refuse_unless(config.seed >= 0, "seed", config.seed, "at least 0")
    check_sweep_name(config.sweep_name)


def check_model(model: Model) -> None:
    if not any((model.path, model.hub_id, model.wheel, model.tiny)):
        raise Refused("model", "has no source", ["model.path", "model.hub_id", "model.wheel", "model.tiny"])
    if model.tiny is not None and model.tiny not in TINY_SHAPES:
        raise Refused(f"model.tiny = {model.tiny}", "is no known shape", TINY_SHAPES, model.tiny)


def check_data(data: Data) -> None:
    if not any((data.path, data.hub_id, data.wheel, data.tiny)):
        raise Refused("data", "has no source", ["data.path", "data.hub_id", "data.wheel", "data.tiny"])
    for name in ("sample", "train_rows", "default_rows", "tiny"):
        value = getattr(data, name)
        refuse_unless(value is None or value >= 1, f"data.{name}", value, "at least 1, or null")
    for name in ("validation_fraction", "test_fraction"):
        value = getattr(data, name)
        refuse_unless(0 <= value < 1, f"data.{name}", value, "at least 0 and below 1")
    total = data.validation_fraction + data.test_fraction
    refuse_unless(total < 1, "data.validation_fraction + data.test_fraction", total, "below 1")
    check_template("data.template", data.template)


def check_lora(lora: Lora) -> None:
    refuse_unless(lora.r >= 1, "lora.r", lora.r, "a whole number of at least 1")
    refuse_unless(is_positive(lora.alpha), "lora.alpha", lora.alpha, "above 0")
    refuse_unless(0 <= lora.dropout < 1, "lora.dropout", lora.dropout, "at least 0 and below 1")
    check_choice("lora.bias", lora.bias, ("none", "all", "lora_only"))
    targets = lora.targets
    if isinstance(targets, str):
        if targets not in TARGET_GROUPS:
            problem = "is no target group (module names go in a list: lora.targets=[q_proj,v_proj])"
            raise Refused(f"lora.targets = {targets}", problem, TARGET_GROUPS, targets)
    elif not (isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)):
        raise Refused(f"lora.targets = {targets}", "must be a target group or a list of module names")


def check_quant(quant: Quant) -> None:
    refuse_unless(quant.bits in QUANT_BITS.values(), "quant.bits", quant.bits, "4, 8 or null")
    check_choice("quant.materialize", quant.materialize, ("auto", "never", "always"))


def check_train(train: Train) -> None:
    refuse_unless(is_positive(train.num_train_epochs), "train.num_train_epochs", train.num_train_epochs, "above 0")
    for name in ("max_steps", "checkpoint_steps"):
        value = getattr(train, name)
        refuse_unless(value is None or value >= 1, f"train.{name}", value, "at least 1, or null")
    refuse_unless(is_positive(train.learning_rate), "train.learning_rate", train.learning_rate, "a number above 0")
    for name in ("max_grad_norm", "weight_decay", "warmup_steps"):
        value = getattr(train, name)
        refuse_unless(value == 0 or is_positive(value), f"train.{name}", value, "at least 0")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        value = getattr(train, name)
        refuse_unless(value >= 1, f"train.{name}", value, "a whole number of at least 1")
    refuse_unless(train.max_length >= 8, "train.max_length", train.max_length, "at least 8 tokens")
    check_choice("train.loss_on", train.loss_on, ("response", "all"))
    for key, value in train.sft.items():
        if key in OWNED_SFT_KEYS or hasattr(train, key):
            instead = OWNED_SFT_KEYS.get(key, f"train.{key}")
            raise Refused(f"train.sft.{key}", f"is set by lora-sweep; use {instead}")
        refuse_unless(not isinstance(value, float) or math.isfinite(value), f"train.sft.{key}", value, "finite")


def check_eval(settings: Eval) -> None:
    for name in ("prompts", "validation_rows", "max_new_tokens", "batch_size"):
        refuse_unless(getattr(settings, name) >= 1, f"eval.{name}", getattr(settings, name), "at least 1")
    refuse_unless(is_positive(settings.temperature), "eval.temperature", settings.temperature, "above 0")
    refuse_unless(0 < settings.top_p <= 1, "eval.top_p", settings.top_p, "above 0 and at most 1")
    check_choice("eval.quant", settings.quant, ("same", *QUANT_BITS))
    check_choice("eval.split", settings.split, ("validation", "test"))
    for template in settings.baseline_templates:
        check_template("eval.baseline_templates", template)


def check_tracking(tracking: Tracking) -> None:
    check_choice("tracking.backend", tracking.backend, ("wandb", "mlflow", "trackio", "none"))
    check_choice("tracking.mode", tracking.mode, ("auto", "online", "offline"))
    packages = TRACKER_PACKAGES.get(tracking.backend, {})
    if not all(importlib.util.find_spec(module) for module in packages):  # takes 0.1 ms each, and imports none
        raise Refused(f"tracking.backend = {tracking.backend}", f"needs: pip install {' '.join(packages.values())}")


def check_launch(launch: Launch) -> None:
    if isinstance(launch.devices, str):
        if launch.devices not in ("auto", "cpu"):
            where = f"launch.devices = {launch.devices}"
            raise Refused(where, "is unknown", ("auto", "cpu", "[0,1]"), launch.devices)
    else:
        devices = launch.devices if isinstance(launch.devices, list) else []
        is_unique = all(type(i) is int and i >= 0 for i in devices) and len(set(devices)) == len(devices) > 0
        rule = "auto, cpu, or a list of different indices, as [0,1]"
        refuse_unless(is_unique, "launch.devices", launch.devices, rule)
    workers = launch.workers
    refuse_unless(workers is None or workers >= 1, "launch.workers", workers, "at least 1, or null")
    is_size = launch.pack == "auto" or (type(launch.pack) is int and launch.pack >= 1)
    refuse_unless(is_size, "launch.pack", launch.pack, "auto, or a whole number of at least 1")
    for name in ("trial_minutes", "stall_minutes"):
        value = getattr(launch, name)
        refuse_unless(value is None or is_positive(value), f"launch.{name}", value, "above 0, or null")
    grace = launch.grace_seconds
    refuse_unless(grace == 0 or is_positive(grace), "launch.grace_seconds", grace, "at least 0")
    check_choice("launch.on_oom", launch.on_oom, ("record", "halve_batch"))
    if launch.retry not in (None, "failed"):
        raise Refused(f"launch.retry = {launch.retry}", "is unknown", ("null", "failed"), launch.retry)


def check_template(where: str, template: str) -> None:
    """Refuse a template that is neither a known name nor a text with the field {product}."""
    if template in TEMPLATES:
        return
    fields = set(re.findall(r"{(\w*)}", template))
    if not fields:
        problem = "is neither a template's name nor a text with the field {product}"
        raise Refused(f"{where} = {template!r}", problem, TEMPLATES, template)
    if unknown := sorted(fields - {"product", "category"}):
        raise Refused(where, f"has an unknown field {{{unknown[0]}}}", ("{product}", "{category}"), f"{{{unknown[0]}}}")
    if "product" not in fields:
        raise Refused(where, "lacks the field {product}: every prompt would be the same")


def check_sweep_name(name: str | None) -> None:
    """Refuse a name that is a path, is hidden, or has a character that a shell or a file system treats specially."""
    is_plain = name is None or bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name))
    refuse_unless(is_plain, "sweep_name", repr(name), "1 to 80 letters, digits, '.', '_' or '-', not starting with '.'")


def check_choice(where: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of ``allowed``."""
    if value not in allowed:
        raise Refused(f"{where} = {value}", "is unknown", allowed, value)


def refuse_unless(is_allowed: bool, where: str, value: Any, rule: str) -> None:
    """Raise :class:`Refused` as ``where = value: must be rule`` where the value is not allowed."""
    if not is_allowed:
        raise Refused(f"{where} = {value}", f"must be {rule}")


def is_positive(value: float) -> bool:
    """Whether a number is finite and above zero. NaN is not."""
    return math.isfinite(value) and value > 0
