"""Splits: stable, disjoint, and not empty."""

import dataclasses
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data_files import SPLITS, Record, refusal, source, write

from lora_sweep.config.schema import Columns, Data
from lora_sweep.data.rows import Row
from lora_sweep.data.sources import make_tiny_records
from lora_sweep.data.splits import Splits, hash_share, load_splits


def homes(split: Splits) -> dict[Row, str]:
    return {row: name for name in SPLITS for row in getattr(split, name)}


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=3)


NEW_RECORDS = st.lists(
    st.fixed_dictionaries({"product": WORDS, "category": st.none() | WORDS, "description": WORDS}), max_size=12
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(more=NEW_RECORDS, seed=st.integers(0, 5), shuffle=st.randoms())
def test_new_rows_move_no_old_one(tmp_path: Path, more: list[Record], seed: int, shuffle: random.Random) -> None:
    before = homes(load_splits(source(write(tmp_path, make_tiny_records(40)), split_seed=seed)))
    records = make_tiny_records(40) + more
    shuffle.shuffle(records)
    after = homes(load_splits(source(write(tmp_path, records), split_seed=seed)))
    assert {row: after[row] for row in before} == before


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(more=NEW_RECORDS, seed=st.integers(0, 5))
def test_no_prompt_is_in_two_splits(tmp_path: Path, more: list[Record], seed: int) -> None:
    same_prompts = [{**record, "description": f"another {n}"} for n, record in enumerate(make_tiny_records(40) + more)]
    split = load_splits(source(write(tmp_path, make_tiny_records(40) + more + same_prompts), split_seed=seed))
    asked = [{row.prompt_fields for row in getattr(split, name)} for name in SPLITS]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]


def test_the_order_of_the_file_changes_nothing(tmp_path: Path) -> None:
    records = make_tiny_records(40) + [{**record, "description": "another"} for record in make_tiny_records(10)]
    split = load_splits(source(write(tmp_path, records)))
    turned = load_splits(source(write(tmp_path, records[::-1])))
    assert turned == split
    assert turned.compute_fingerprint() == split.compute_fingerprint()


def test_the_seed_draws_another_split_and_the_fractions_are_kept() -> None:
    rows = [Row(record["product"], record["category"], "text") for record in make_tiny_records(2000)]
    shares = [hash_share(row, 0) for row in rows]
    assert all(0 <= share < 1 for share in shares)
    for bound in (0.1, 0.25, 0.5):
        assert abs(sum(share < bound for share in shares) / 2000 - bound) < 0.04  # four standard deviations
    assert shares != [hash_share(row, 1) for row in rows]
    assert hash_share(Row("a", None, "x"), 0) == hash_share(Row("a", None, "y"), 0)
    assert hash_share(Row("a", "b", "x"), 0) != hash_share(Row("a", "c", "x"), 0)


def test_fractions_say_how_many_rows_are_held_out() -> None:
    split = load_splits(Data(name="tiny", tiny=2000, validation_fraction=0.05, test_fraction=0.0))
    assert split.test == []
    assert 70 <= len(split.validation) <= 130
    more = load_splits(Data(name="tiny", tiny=2000, validation_fraction=0.05, test_fraction=0.3))
    assert 520 <= len(more.test) <= 680
    assert more.compute_fingerprint() != split.compute_fingerprint()


def with_column(count: int = 6) -> list[Record]:
    names = ("train", "validation", "test")
    return [{**record, "fold": names[number % 3]} for number, record in enumerate(make_tiny_records(count))]


BY_COLUMN = {"columns": Columns(split="fold")}


def test_a_column_may_say_which_split_a_row_is_in(tmp_path: Path) -> None:
    records = with_column()
    split = load_splits(source(write(tmp_path, records), **BY_COLUMN))
    for name in SPLITS:
        assert [row.product for row in getattr(split, name)] == [r["product"] for r in records if r["fold"] == name]


def test_an_unknown_split_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    records = with_column()
    records[1]["fold"] = "valdation"
    said = "did you mean 'validation'?; allowed: train, validation, test"
    expected = f"data.columns.split: holds 'valdation' (product {records[1]['product']!r}); {said}"
    assert refusal(source(write(tmp_path, records), **BY_COLUMN)) == expected


def test_an_empty_split_of_a_column_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [record for record in with_column() if record["fold"] != "validation"])
    expected = f"data {path}: no row is left in the validation split of 4 usable rows"
    assert refusal(source(path, **BY_COLUMN)) == expected


@pytest.mark.parametrize("text", [{}, {"description": "another text"}])
@pytest.mark.parametrize(("name", "other"), [("validation", "train"), ("test", "train"), ("test", "validation")])
def test_a_prompt_in_two_splits_is_refused(tmp_path: Path, name: str, other: str, text: Record) -> None:
    records = with_column()
    first = records[SPLITS.index(other)]
    leaked = {**first, **text, "fold": name}
    expected = f"1 of the {name} split's prompts are in the {other} split too, first {first['product']!r}"
    for order in ([*records, leaked], [leaked, *records]):
        assert refusal(source(write(tmp_path, order), **BY_COLUMN)) == f"data.columns.split: {expected}"


def test_a_row_repeated_within_its_split_is_dropped_and_counted(tmp_path: Path) -> None:
    records = with_column()
    split = load_splits(source(write(tmp_path, [*records, records[0]]), **BY_COLUMN))
    assert split.dropped == {"repeated": 1}


FIELDS = ("product", "category", "description")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", SPLITS)
def test_the_fingerprint_sees_every_field_of_every_row(name: str, field: str) -> None:
    rows = {split: [Row(f"{split} {n}", "category", "text") for n in range(3)] for split in SPLITS}
    fingerprints = {Splits(**rows, rows_read=9, dropped={}).compute_fingerprint()}
    for position in range(3):
        other = list(rows[name])
        other[position] = dataclasses.replace(other[position], **{field: "changed"})
        fingerprints.add(Splits(**{**rows, name: other}, rows_read=9, dropped={}).compute_fingerprint())
    assert len(fingerprints) == 4


def test_the_fingerprint_sees_a_row_added_removed_or_moved() -> None:
    one, two = Row("one", None, "1"), Row("two", None, "2")
    splits = [
        ([one], [two], []),
        ([two], [one], []),
        ([one, two], [], []),
        ([two, one], [], []),
        ([one], [], [two]),
        ([one], [], []),
        ([], [], []),
    ]
    fingerprints = {Splits(*rows, rows_read=2, dropped={}).compute_fingerprint() for rows in splits}
    assert len(fingerprints) == len(splits)
    assert (
        Splits([one], [two], [], 2, {}).compute_fingerprint()
        == Splits([one], [two], [], 9, {"repeated": 7}).compute_fingerprint()
    )
