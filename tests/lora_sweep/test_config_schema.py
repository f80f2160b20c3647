"""Configurations as JSON, and what a typed path replaces."""

import dataclasses
from typing import Any

import pytest
from omegaconf.errors import ConfigKeyError, ValidationError
from support.configs import good

from lora_sweep.config.schema import Config, FixedPrompt, WheelFile, apply_typed_paths, config_from_json

# --- reading a config back -------------------------------------------------------------------------------------------


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


# --- what a typed path replaces --------------------------------------------------------------------------------------


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
