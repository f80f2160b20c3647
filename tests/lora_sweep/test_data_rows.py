"""Which rows are left out, and which are sampled."""

from pathlib import Path
from typing import Any

import pandas
import pytest
from support.data_files import refusal, rows_of, source, write

from lora_sweep.data.sources import make_tiny_records, sample_records
from lora_sweep.data.splits import load_splits


def test_repeated_and_empty_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    records = make_tiny_records(40)
    more = [
        records[3],
        records[3],
        {**records[4], "product": " " + records[4]["product"] + " "},
        {**records[5], "description": ""},
        {**records[6], "description": None},
        {**records[7], "product": " "},
        {**records[8], "description": "another text for the same prompt"},
    ]
    split = load_splits(source(write(tmp_path, records + more)))
    assert split.dropped == {"repeated": 3, "empty description": 2, "empty product": 1}
    assert split.rows_read == 47
    assert len(rows_of(split)) == 41
    assert len(rows_of(split)) + sum(split.dropped.values()) == split.rows_read


def test_train_rows_take_a_stable_prefix_and_count_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, make_tiny_records(60))
    whole = load_splits(source(path))
    for count in (1, 5, len(whole.train)):
        split = load_splits(source(path, train_rows=count))
        assert split.train == whole.train[:count]
        assert (split.validation, split.test) == (whole.validation, whole.test)
        left = len(whole.train) - count
        assert split.dropped == ({f"beyond data.train_rows={count}": left} if left else {})
    assert load_splits(source(path, train_rows=10_000)) == whole


def test_a_sample_is_the_one_that_pandas_draws(tmp_path: Path) -> None:
    records = make_tiny_records(100)
    drawn = pandas.DataFrame(records).sample(n=25, random_state=42).to_dict("records")
    path = write(tmp_path, records)
    assert sample_records(records, source(path, sample=25)) == drawn
    assert sample_records(records, source(path, sample=25, sample_seed=1)) != drawn
    assert (
        sample_records(records, source(path, sample=100))
        == sample_records(records, source(path, sample=500))
        == records
    )
    split = load_splits(source(path, sample=25))
    assert {row.product for row in rows_of(split)} == {record["product"] for record in drawn}
    assert split.rows_read == 100
    assert split.dropped == {"not among the 25 sampled": 75}


@pytest.mark.parametrize(("changes", "name"), [({"validation_fraction": 0.0}, "validation"), ({}, "train")])
def test_a_split_without_a_row_is_refused(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    path = write(tmp_path, make_tiny_records(40) if changes else make_tiny_records(1))
    data = source(path, **({"validation_fraction": 0.5, "test_fraction": 0.49} | changes))
    count = 40 if changes else 1
    share = " (data.validation_fraction=0.0)" if changes else ""
    assert refusal(data) == f"data {path}: no row is left in the {name} split of {count} usable rows{share}"
