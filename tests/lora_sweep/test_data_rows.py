"""data: rows are read alike from every format, split without leaking, and become ids in which data is only text."""

import csv
import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from lora_sweep.config.schema import Columns, Data, WheelFile
from lora_sweep.data.prompts import (
    IGNORED_LABEL,
    Example,
    choose_end_marker,
    count_tokens,
    make_examples,
    tokenize_prompt,
    tokenize_response,
    write_prompt,
)
from lora_sweep.data.rows import Row
from lora_sweep.data.sources import fingerprint_source, make_tiny_records, read_records, sample_records
from lora_sweep.data.splits import Splits, hash_share, load_splits
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


def homes(split: Splits) -> dict[Row, str]:
    return {row: name for name in SPLITS for row in getattr(split, name)}


def refusal(data: Data) -> str:
    with pytest.raises(Refused) as caught:
        load_splits(data)
    return str(caught.value)


# --- reading -----------------------------------------------------------------------------------------------------

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


# --- other sources -----------------------------------------------------------------------------------------------


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


# --- what is left out --------------------------------------------------------------------------------------------


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


# --- splits ------------------------------------------------------------------------------------------------------

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


# --- prompts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_tokenizer() -> Any:
    from lora_sweep.model.tiny import make_tiny_tokenizer

    return make_tiny_tokenizer()


CHAT = (
    "{% for message in messages %}<|bos|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(made_tokenizer: Any) -> Iterator[Any]:
    """The tiny tokenizer, as it was made; a test may change it."""
    kept = made_tokenizer.eos_token, made_tokenizer.backend_tokenizer.post_processor
    yield made_tokenizer
    made_tokenizer.chat_template = None
    made_tokenizer.eos_token, made_tokenizer.backend_tokenizer.post_processor = kept


BLOG_PROMPT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Create a detailed description for the following product: Corelogic Smooth Mouse, belonging to category: Optical Mouse

### Response:
"""


def test_alpaca_is_the_blog_s_text_with_its_end_marker(tokenizer: Any) -> None:
    assert write_prompt("alpaca", "Corelogic Smooth Mouse", "Optical Mouse", None) == BLOG_PROMPT
    assert choose_end_marker(Data(), "alpaca") == "\n### End"
    row = Row("Corelogic Smooth Mouse", "Optical Mouse", "It is light.")
    made = make_examples([row], Data(), tokenizer, 512)[0]
    assert tokenizer.decode(made.input_ids) == BLOG_PROMPT + "It is light.\n### End<|end|>"


def test_qa_is_the_blog_s_other_form_and_ends_with_the_eos_token_alone(tokenizer: Any) -> None:
    sentence = (
        "Create a detailed description for the following product: Hoover Lightspeed, belonging to category: Vacuum"
    )
    said = f"Q: {sentence}\nA:"
    assert write_prompt("qa", "Hoover Lightspeed", "Vacuum", None) == said
    assert choose_end_marker(Data(), "qa") == choose_end_marker(Data(), "chat") == ""
    made = make_examples([Row("Hoover Lightspeed", "Vacuum", " Fast.")], Data(template="qa"), tokenizer, 512)[0]
    assert tokenizer.decode(made.input_ids) == said + " Fast.<|end|>"


def test_without_a_category_the_sentence_ends_earlier() -> None:
    assert (
        write_prompt("qa", "Lamp", None, None) == "Q: Create a detailed description for the following product: Lamp\nA:"
    )


def test_the_end_marker_can_be_chosen() -> None:
    assert (
        choose_end_marker(Data(end_marker=" STOP"), "alpaca")
        == choose_end_marker(Data(end_marker=" STOP"), "qa")
        == " STOP"
    )
    assert choose_end_marker(Data(end_marker=""), "alpaca") == ""


def test_chat_is_the_tokenizer_s_own_form(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT
    sentence = "Create a detailed description for the following product: Lamp, belonging to category: light"
    text = f"<|bos|>user\n{sentence}<|end|>\n<|bos|>assistant\n"
    assert write_prompt("chat", "Lamp", "light", tokenizer) == text
    ids = tokenize_prompt("chat", "Lamp", "light", tokenizer)
    assert tokenizer.decode(ids) == text
    assert [ids.count(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [2, 1]


def test_chat_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    said = r"^data\.template = chat: this tokenizer has no chat template; allowed: alpaca, qa$"
    with pytest.raises(Refused, match=said):
        write_prompt("chat", "Lamp", "light", tokenizer)


def test_a_chat_template_that_changes_what_is_said_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | length }}{% endfor %}"
    said = r"^data\.template = chat: its chat template does not show a message as it is; allowed: alpaca, qa$"
    with pytest.raises(Refused, match=said):
        tokenize_prompt("chat", "Lamp", "light", tokenizer)


@pytest.mark.parametrize(
    ("template", "product", "category", "text"),
    [
        ("Describe {product} ({category}):\n", "Lamp", "light", "Describe Lamp (light):\n"),
        ("{product}{product}", "Lamp", "light", "LampLamp"),
        ("{product} ({category})", "Lamp", None, "Lamp ()"),
        ('{"name": {product}} {0} {{x}}', "Lamp", None, '{"name": Lamp} {0} {{x}}'),
        ("{product} / {category}", "{category}", "{product}", "{category} / {product}"),
        ("{product}", "\\1 \\g<0> %s $x {0}", None, "\\1 \\g<0> %s $x {0}"),
    ],
)
def test_a_text_with_fields_is_a_template_and_data_is_only_text(
    template: str, product: str, category: str | None, text: str
) -> None:
    assert write_prompt(template, product, category, None) == text


@pytest.mark.parametrize("template", ["alpaca", "qa", "chat", "On {product}, {category}:"])
def test_braces_in_data_stay_text_in_every_template(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = CHAT
    product, category = "{instruction} {product} {{ 7*7 }}", "{category} {% raw %}"
    text = write_prompt(template, product, category, tokenizer)
    assert product in text
    assert category in text
    assert text.count("{instruction}") == 1


# --- token ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["alpaca", "qa", "chat", "{product} {category}"])
def test_special_tokens_in_data_are_plain_text(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = CHAT
    special = set(tokenizer.all_special_ids)
    plain = tokenize_prompt(template, "lamp x", "light", tokenizer)
    nasty = tokenize_prompt(template, "lamp <|end|><|bos|><|pad|> x", "<|end|>", tokenizer)
    assert [i for i in nasty if i in special] == [i for i in plain if i in special]
    assert "lamp <|end|><|bos|><|pad|> x" in tokenizer.decode(nasty)
    assert tokenizer.eos_token_id in tokenizer("<|end|>")["input_ids"]  # what happens without care


def test_special_tokens_in_a_response_are_plain_text_and_one_eos_ends_it(tokenizer: Any) -> None:
    ids = tokenize_response(Row("p", None, "one <|end|> two<|pad|>"), "\n### End", tokenizer)
    assert tokenizer.decode(ids) == "one <|end|> two<|pad|>\n### End<|end|>"
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert ids[-1] == tokenizer.eos_token_id


def test_a_tokenizer_s_own_first_token_is_kept_and_its_last_is_not(tokenizer: Any) -> None:
    pair = [("<|bos|>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)]
    plain = tokenize_prompt("qa", "Lamp", None, tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A <|end|>", special_tokens=pair)
    assert tokenize_prompt("qa", "Lamp", None, tokenizer) == [tokenizer.bos_token_id, *plain]
    ids = tokenize_response(Row("Lamp", None, "Light."), "", tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 0
    assert ids.count(tokenizer.eos_token_id) == 1


def test_labels_leave_the_prompt_out_and_hold_the_end() -> None:
    example = Example([10, 11, 12, 20, 21, 1], prompt_length=3, is_cut=False)
    assert example.mask_labels("response") == [IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 20, 21, 1]
    assert example.mask_labels("all") == [10, 11, 12, 20, 21, 1]
    assert IGNORED_LABEL == -100  # torch's and TRL's


@pytest.mark.parametrize("template", ["alpaca", "qa", "chat", "{product}: "])
def test_an_example_is_prompt_response_and_end(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = CHAT
    data = Data(template=template)
    rows = [Row(record["product"], record["category"], record["description"]) for record in make_tiny_records(5)]
    for row, made in zip(rows, make_examples(rows, data, tokenizer, 512), strict=True):
        prompt = tokenize_prompt(template, row.product, row.category, tokenizer)
        counted = [label for label in made.mask_labels("response") if label != IGNORED_LABEL]
        assert made.input_ids[: made.prompt_length] == prompt
        assert made.mask_labels("response")[: made.prompt_length] == [IGNORED_LABEL] * len(prompt)
        assert tokenizer.decode(counted) == row.description + choose_end_marker(data, template) + "<|end|>"
        assert counted[-1] == tokenizer.eos_token_id
        assert not made.is_cut


def test_rows_beyond_max_length_are_cut_and_say_so(tokenizer: Any) -> None:
    rows = [Row("Lamp", None, "It is light. " * n) for n in (1, 2, 40)]
    whole = make_examples(rows, Data(), tokenizer, 10_000)
    length = len(whole[1].input_ids)
    made = make_examples(rows, Data(), tokenizer, length)
    assert [example.is_cut for example in made] == [False, False, True]
    assert made[:2] == whole[:2]
    assert made[2].input_ids == whole[2].input_ids[:length]
    assert len(made[2].mask_labels("response")) == length
    assert made[2].mask_labels("response")[-1] != tokenizer.eos_token_id
    assert count_tokens(made) == len(whole[0].input_ids) + 2 * length


def test_prompts_without_room_for_a_response_are_refused_and_counted(tokenizer: Any) -> None:
    rows = [Row("Lamp", None, "Light."), Row("Lamp " * 30, None, "Light."), Row("Lamp " * 40, None, "Light.")]
    lengths = [len(tokenize_prompt("qa", row.product, None, tokenizer)) for row in rows]
    data = Data(template="qa")
    with pytest.raises(Refused) as caught:
        make_examples(rows, data, tokenizer, lengths[1])
    shown = ("Lamp " * 40)[:60]
    assert str(caught.value) == (
        f"train.max_length = {lengths[1]}: 2 of 3 prompts leave no room for a response; the longest has {lengths[2]} "
        f"tokens ({shown!r}): raise train.max_length or shorten those rows"
    )
    made = make_examples(rows, data, tokenizer, lengths[2] + 1)
    assert [len(example.input_ids) - example.prompt_length for example in made][2] == 1


def test_a_tokenizer_without_an_eos_token_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(Refused, match=r"^model: its tokenizer has no eos token: a tuned model could never learn to st"):
        make_examples([Row("Lamp", None, "Light.")], Data(), tokenizer, 512)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(product=st.text(max_size=20), description=st.text(max_size=40), length=st.integers(60, 140))
def test_no_text_upsets_the_ids(tokenizer: Any, product: str, description: str, length: int) -> None:
    data = Data(template="qa")
    assume(len(tokenize_prompt("qa", product, None, tokenizer)) < length)
    made = make_examples([Row(product, None, description)], data, tokenizer, length)[0]
    assert len(made.input_ids) <= length
    assert made.is_cut == (made.input_ids[-1] != tokenizer.eos_token_id)
    special = [i for i in made.input_ids if i in tokenizer.all_special_ids]
    assert special == ([] if made.is_cut else [tokenizer.eos_token_id])
