"""A configuration with every source, and copies of it with one value changed."""

import copy
from typing import Any

from lora_sweep.config.schema import Config


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
