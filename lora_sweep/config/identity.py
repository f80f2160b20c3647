"""The ids of trials and evaluations: a hash of everything that can change their results, and of nothing else.

Reads no file except the source of a scorer that the user wrote.
"""

import dataclasses
import hashlib
import json
from typing import Any

from lora_sweep.config.schema import Config
from lora_sweep.config.user_functions import fingerprint_function
from lora_sweep.runs.files import JsonObject

RECIPE_VERSION = 2  # raise it when the same configuration trains to a different adapter
SCORER_VERSION = 3  # raise it when the same adapter gets other texts or numbers, or when neutral.txt changes


def to_canonical_json(value: Any) -> str:
    """JSON that is the same text for equal values: sorted keys, 8.0 written as 8, no spaces."""

    def normalize_value(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer():
            return int(item)
        if isinstance(item, dict):
            return {str(key): normalize_value(part) for key, part in item.items()}
        if isinstance(item, list | tuple):
            return [normalize_value(part) for part in item]
        return item

    return json.dumps(normalize_value(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_hash(value: Any, length: int = 12) -> str:
    """The first ``length`` hex digits of the sha256 of ``value`` as canonical JSON."""
    return hashlib.sha256(to_canonical_json(value).encode()).hexdigest()[:length]


def base_identity(config: Config, model_fingerprint: str, data_fingerprint: str) -> JsonObject:
    """What all trials on one base share: the model, its bits, and the rows with their template and split."""
    data = {
        key: value
        for key, value in dataclasses.asdict(config.data).items()
        if key not in ("name", "licence", "path", "hub_id", "revision", "wheel", "train_rows", "default_rows")
    }
    data["rows"] = config.data.train_rows or config.data.default_rows
    double = config.quant.double_quant if config.quant.bits == 4 else None  # has no effect at other bits
    return {
        "model": model_fingerprint,
        "quant": {"bits": config.quant.bits, "double_quant": double},
        "data": {"source": data_fingerprint, **data},
    }


def trial_identity(
    config: Config, model_fingerprint: str, data_fingerprint: str, target_modules: list[str]
) -> JsonObject:
    """Everything that can change the adapter, and nothing else. Its hash names the trial's folder."""
    lora = dataclasses.asdict(config.lora)
    lora["targets"] = sorted(target_modules)
    train = dataclasses.asdict(config.train)
    train["batch"] = train.pop("per_device_train_batch_size") * train.pop("gradient_accumulation_steps")
    for key in ("gradient_checkpointing", "checkpoint_steps"):  # these change no number
        train.pop(key)
    train.pop("num_train_epochs" if config.train.max_steps else "max_steps")
    base = base_identity(config, model_fingerprint, data_fingerprint)
    return {"kind": "trial", "recipe": RECIPE_VERSION, **base, "lora": lora, "train": train, "seed": config.seed}


def baseline_identity(config: Config, model_fingerprint: str, data_fingerprint: str, template: str) -> JsonObject:
    """What identifies a baseline: the untuned base, at the bits of the evaluation, prompted with ``template``."""
    quant = dataclasses.replace(config.quant, bits=config.eval_bits())
    config = dataclasses.replace(config, quant=quant, data=dataclasses.replace(config.data, template=template))
    base = base_identity(config, model_fingerprint, data_fingerprint)
    return {"kind": "baseline", "recipe": RECIPE_VERSION, **base}


def eval_identity(config: Config) -> JsonObject:
    """Everything that can change the evaluation of one adapter. Its hash names the evaluation's folder."""
    evaluation = dataclasses.asdict(config.eval)
    for key in ("baseline_templates", "quant"):
        evaluation.pop(key)
    if config.eval.do_sample:
        evaluation["seed"] = config.seed
    else:  # greedy decoding: these change nothing, or in the case of the batch size at most a rounding
        for key in ("temperature", "top_p", "batch_size"):
            evaluation.pop(key)
    return {
        "version": SCORER_VERSION,
        "bits": config.eval_bits(),
        "max_length": config.train.max_length,  # the rows of the validation loss are cut to it, also for a baseline
        "function": fingerprint_function(config.eval.scorer),
        **evaluation,
    }
