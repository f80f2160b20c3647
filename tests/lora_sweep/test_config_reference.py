"""The page with every key: it is the one in docs/, every key of the schema is in it, and each has a meaning."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.config import reference
from lora_sweep.config.conf_folder import find_conf_folder
from lora_sweep.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGE = reference.write_reference(find_conf_folder())


def key_names(kind: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    for item in dataclasses.fields(kind):
        inside = dataclasses.is_dataclass(item.type)
        names += key_names(item.type, f"{prefix}{item.name}.") if inside else [prefix + item.name]
    return names


def test_the_page_in_docs_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == PAGE, "run: make docs"


@pytest.mark.parametrize("key", key_names(Config))
def test_every_key_has_a_row_with_a_meaning(key: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |")]
    assert row.removesuffix("|").rpartition("|")[2].strip(), f"{key}: the schema has no comment for it"


def test_defaults_are_those_of_the_yaml_files_and_not_of_the_schema() -> None:
    assert '| `model.name` | text | `"smollm2_demo"` |' in PAGE
    assert "| `data.default_rows` | whole number or null | `64` |" in PAGE


def test_every_file_of_a_group_is_listed() -> None:
    for group in ("model", "data", "quant", "tracking", "experiment"):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"- `{group}={path.stem}`: " in PAGE


def test_a_comment_above_a_field_and_one_behind_it_are_both_read() -> None:
    source = "class A:\n    # above\n    x: int = 1  # behind\n    y: int = 2\n    # of z\n    z: int = 3\n"
    assert reference.read_field_comments(source) == {"A": {"x": "above behind", "y": "", "z": "of z"}}
