"""Reading rows from files, from the hub and from wheels, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from support.data_files import Record, refusal, rows_of, source, write
from support.data_files import made_tokenizer as made_tokenizer
from support.data_files import tokenizer as tokenizer

from lora_sweep.config.schema import Columns, Data, WheelFile
from lora_sweep.data.prompts import (
    make_examples,
)
from lora_sweep.data.rows import Row
from lora_sweep.data.sources import fingerprint_source, make_tiny_records, read_records
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Refused

# --- reading ---------------------------------------------------------------------------------------------------------


AWKWARD = [
    {"product": 'A "quoted", lamp', "category": "lamp", "description": "Two lines:\nthe second, with a comma."},
    {"product": "Fußmatte 毛毯 🪔", "category": "", "description": "Line\u2028separators and next\x85lines are text."},
    {"product": "=1+1", "category": "kettle", "description": "{category} and <|end|> stay as they are."},
    {"product": "  padded  ", "category": " chair ", "description": "\ttabs around\t"},
]


RECORDS = [*AWKWARD, *make_tiny_records(40)]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    expected = load_splits(source(write(tmp_path, RECORDS)))
    split = load_splits(source(write(tmp_path, RECORDS, ending)))
    assert split == expected
    assert len(rows_of(split)) == len(RECORDS)
    assert Row("Fußmatte 毛毯 🪔", None, "Line\u2028separators and next\x85lines are text.") in rows_of(split)
    assert Row("padded", "chair", "tabs around") in rows_of(split)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_other_line_ends_change_nothing(
    tmp_path: Path, ending: str, bom: bytes, newline: bytes
) -> None:
    path = write(tmp_path, RECORDS, ending)
    expected = load_splits(source(path))
    text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", newline)
    path.write_bytes(bom + text)
    assert load_splits(source(path)) == expected


def test_blank_lines_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    expected = load_splits(source(path))
    path.write_text(path.read_text().replace("\n{", "\n\n  \n{").rstrip("\n"))
    assert load_splits(source(path)) == expected


def test_values_that_are_no_text_become_text_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    values: list[Record] = [
        {"product": number, "category": None, "description": 1.5 * number} for number in range(1, 40)
    ]
    path = write(tmp_path, [*values, {"product": 99}])
    path.write_text(path.read_text() + '{"product": 100, "description": NaN}\n')
    split = load_splits(source(path))
    assert Row("2", None, "3.0") in rows_of(split)
    assert split.dropped == {"empty description": 2}


def test_columns_may_have_any_name_and_a_category_may_be_absent(tmp_path: Path) -> None:
    renamed = [{"name": r["product"], "text": r["description"], "unused": 1} for r in make_tiny_records(40)]
    columns = Columns(product="name", category=None, description="text")
    split = load_splits(source(write(tmp_path, renamed), columns=columns))
    assert {row.product for row in rows_of(split)} == {record["product"] for record in make_tiny_records(40)}
    assert {row.category for row in rows_of(split)} == {None}


def test_a_missing_file_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    (tmp_path / "notes.txt").touch()
    path = tmp_path / "row.jsonl"
    said = f"data.path = {path}: is no file; did you mean 'rows.jsonl'?; allowed: rows.jsonl"
    assert refusal(source(path)) == said
    assert refusal(source(tmp_path / "nowhere" / "rows.jsonl")).endswith("rows.jsonl: is no file")
    assert "is no file" in refusal(source(tmp_path))
    with pytest.raises(Refused, match="is no file"):
        fingerprint_source(source(path))


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[]")
    said = "has an unknown ending '.json'; did you mean '.jsonl'?; allowed: .jsonl, .csv, .parquet"
    assert refusal(source(path)) == f"data.path = {path}: {said}"


@pytest.mark.parametrize(
    ("role", "column", "said"),
    [
        ("product", "produkt", "did you mean 'product'?; allowed: product, category, description"),
        ("description", "text", "allowed: product, category, description"),
        ("category", "kategory", "did you mean 'category'?; allowed: product, category, description"),
        ("split", "fold", "allowed: product, category, description"),
    ],
)
def test_a_missing_column_is_refused_with_the_nearest_one(tmp_path: Path, role: str, column: str, said: str) -> None:
    path = write(tmp_path, RECORDS)
    columns = dataclasses.replace(Columns(), **{role: column})
    expected = f"data.columns.{role}: there is no column {column!r} in {path}; {said}"
    assert refusal(source(path, columns=columns)) == expected


@pytest.mark.parametrize(
    ("ending", "content"),
    [("jsonl", b""), ("jsonl", b"\n \n"), ("csv", b""), ("csv", b"product,category,description\n")],
)
def test_a_file_without_a_row_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    assert refusal(source(path)) == f"data {path}: is empty: it holds no row"


def test_a_parquet_file_without_a_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pandas.DataFrame(RECORDS[:0], columns=list(RECORDS[0])).to_parquet(path)
    assert refusal(source(path)) == f"data {path}: is empty: it holds no row"


@pytest.mark.parametrize("keep", [0, 40])
def test_a_torn_parquet_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, RECORDS, "parquet")
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(source(path)).startswith(f"{path}: is no readable parquet file (")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_line_that_is_not_utf_8_is_refused_with_its_number(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, make_tiny_records(5), ending)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"made", b"m\xe4de")
    path.write_bytes(b"".join(lines))
    column = lines[2].index(b"\xe4") + 1
    assert refusal(source(path)) == f"{path}, line 3: is not UTF-8 (byte 0xe4 at column {column})"


def test_truncated_json_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, make_tiny_records(3))
    path.write_text(path.read_text()[:-20])
    line = path.read_text().splitlines()[2]
    column = line.rindex(': "') + 3
    assert refusal(source(path)) == f"{path}, line 3: is broken JSON (Unterminated string starting, column {column})"


def csv_lines(lines: list[str]) -> str:
    return "".join(line + "\n" for line in ("product,category,description", *lines))


@pytest.mark.parametrize(
    ("lines", "number", "said"),
    [
        (["a,b,c", "d,e,f, and more", "g,h,i"], 3, "has more cells than the header: a text with a comma in it must"),
        (["a,b,c", 'd,e,"f', "g,h,i"], 4, "is broken CSV (unexpected end of data)"),
        (["a,b,c", 'd,e,"f"g', "h,i,j"], 3, "is broken CSV (',' expected after '\"')"),
        (["a,b," + "c" * 200_000], 2, "is broken CSV (field larger than field limit (131072))"),
    ],
)
def test_broken_csv_is_refused_with_its_line(tmp_path: Path, lines: list[str], number: int, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(csv_lines(lines))
    assert refusal(source(path)).startswith(f"{path}, line {number}: {said}")


@pytest.mark.parametrize(("line", "kind"), [("[1, 2]", "list"), ('"text"', "str"), ("null", "NoneType"), ("3", "int")])
def test_a_line_that_is_no_object_is_refused_with_its_number(tmp_path: Path, line: str, kind: str) -> None:
    path = write(tmp_path, make_tiny_records(2))
    path.write_text(path.read_text() + line + "\n")
    assert refusal(source(path)) == f"{path}, line 3: holds a {kind}, not an object with columns"


def test_half_a_surrogate_pair_is_read_and_can_be_tokenized(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, make_tiny_records(40))
    path.write_text(path.read_text() + '{"product": "a\\ud83d", "category": "b", "description": "c\\udc00"}\n')
    data = source(path)
    split = load_splits(data)
    assert len(rows_of(split)) == 41
    assert len(make_examples(rows_of(split), data, tokenizer, 512)) == 41


# --- other sources ---------------------------------------------------------------------------------------------------


def test_a_data_set_of_the_hub_is_read_like_a_file(tmp_path: Path) -> None:
    """A folder stands in for the hub: datasets.load_dataset reads both."""
    (tmp_path / "set").mkdir()
    path = write(tmp_path / "set", RECORDS, "csv")
    expected = load_splits(source(path))
    split = load_splits(dataclasses.replace(source(path), path=None, hub_id=str(tmp_path / "set")))
    assert split == expected


def test_a_data_set_that_the_hub_does_not_give_is_refused() -> None:
    with pytest.raises(Refused, match=r"^data nobody/nothing: could not be loaded from the hub \(\w+: .+\)$"):
        read_records(Data(name="x", hub_id="nobody/nothing"))


def test_the_catalogue_keeps_records_with_a_keyword_and_a_description_of_some_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(name: str, words: int, *keywords: str) -> Record:
        return {"name": name, "keywords": list(keywords), "description": " ".join(["word"] * words)}

    content = {
        "1": record("kept", 20, "genes", "plants"),
        "2": record("kept too", 120, "soil"),
        "3": record("too short", 19, "genes"),
        "4": record("too long", 121, "genes"),
        "5": record("no keyword", 50),
        "6": record("n" * 80, 50, "genes"),
        "7": {"name": "no description", "keywords": ["genes"], "description": None},
    }
    wheel = WheelFile("bioregistry==1", "ab" * 32, "bioregistry/external/fairsharing/processed.json")
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path))
    folder = tmp_path / "wheels" / wheel.sha256[:16]
    folder.mkdir(parents=True)
    (folder / "processed.json").write_text(json.dumps(content))
    records = read_records(Data(name="catalogue", wheel=wheel))
    assert [(r["product"], r["category"], len(r["description"].split())) for r in records] == [
        ("kept", "genes", 20),
        ("kept too", "soil", 120),
    ]


def test_made_up_rows_are_a_prefix_of_more_of_them() -> None:
    assert make_tiny_records(10) == make_tiny_records(30)[:10]
    assert len({record["product"] for record in make_tiny_records(64)}) == 64


def test_a_source_is_named_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    before = fingerprint_source(source(path))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert fingerprint_source(source(moved)) == before
    moved.write_bytes(moved.read_bytes() + b"\n")
    assert fingerprint_source(source(moved)) != before
    assert fingerprint_source(Data(hub_id="a/b", revision="c0ffee")) == "a/b@c0ffee"
    assert fingerprint_source(Data(hub_id="a/b")) == "a/b@main"
    assert fingerprint_source(Data(wheel=WheelFile("a==1", "0123456789abcdef99", "f"))) == "wheel:0123456789abcdef"
    assert fingerprint_source(Data(tiny=5)) != fingerprint_source(Data(tiny=6))
