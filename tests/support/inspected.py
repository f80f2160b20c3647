"""Configurations for the tests that look at a model or at data."""

import dataclasses
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Config, Model


def tiny_config(shape: str = "llama", **data: Any) -> Config:
    config = Config()
    config.model.name, config.model.tiny = "tiny", shape
    config.data = dataclasses.replace(config.data, **{"name": "tiny", "tiny": 40, "validation_fraction": 0.25, **data})
    return config


def from_folder(folder: Path) -> Config:
    config = tiny_config()
    config.model = Model(name="mine", path=str(folder))
    return config


# Toy sizes for architectures that transformers has, and what attn and mlp must be in them.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}


WIDE = {**SMALL, "intermediate_size": 128}
