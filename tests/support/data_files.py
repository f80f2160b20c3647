"""Data files for tests of data: how one is written and read, and what its rows are."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest

from lora_sweep.config.schema import Data
from lora_sweep.data.rows import Row
from lora_sweep.data.splits import Splits, load_splits
from lora_sweep.errors import Refused

Record = dict[str, Any]


SPLITS = ("train", "validation", "test")


def write(folder: Path, records: list[Record], ending: str = "jsonl") -> Path:
    """A file with ``records`` in the format that its ending names."""
    path = folder / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    elif ending == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pandas.DataFrame(records).to_parquet(path)
    return path


def source(path: Path, **changes: Any) -> Data:
    return Data(**{"name": "mine", "path": str(path), "validation_fraction": 0.25, "test_fraction": 0.25, **changes})


def rows_of(split: Splits) -> list[Row]:
    return [row for name in SPLITS for row in getattr(split, name)]


def refusal(data: Data) -> str:
    with pytest.raises(Refused) as caught:
        load_splits(data)
    return str(caught.value)


@pytest.fixture(scope="module")
def made_tokenizer() -> Any:
    from lora_sweep.model.tiny import make_tiny_tokenizer

    return make_tiny_tokenizer()


@pytest.fixture
def tokenizer(made_tokenizer: Any) -> Iterator[Any]:
    """The tiny tokenizer, as it was made; a test may change it."""
    kept = made_tokenizer.eos_token, made_tokenizer.backend_tokenizer.post_processor
    yield made_tokenizer
    made_tokenizer.chat_template = None
    made_tokenizer.eos_token, made_tokenizer.backend_tokenizer.post_processor = kept
