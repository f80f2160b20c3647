"""Rows of a data set: read, checked and split. Owns the splits and the fingerprints; knows no template and no token."""

import csv
import hashlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Data
from lora_sweep.data.wheels import fetch_wheel_file
from lora_sweep.errors import Refused

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One example: what is asked (product, category) and what should be written (description)."""

    product: str
    category: str | None
    description: str

    @property
    def asked(self) -> tuple[str, str]:
        return self.product, self.category or ""


@dataclass(frozen=True)
class Splits:
    """The rows of the three splits, each in hash order, and how many were left out for which reason."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    rows_read: int
    dropped: dict[str, int]

    def fingerprint(self) -> str:
        """Hex digits that change when any row of any split changes or moves."""
        digest = hashlib.sha256()
        for name in SPLIT_NAMES:
            for row in getattr(self, name):
                digest.update(json.dumps([name, row.product, row.category, row.description]).encode())
        return digest.hexdigest()[:16]


def load_splits(data: Data) -> Splits:
    """Read, clean and split the rows that ``data`` names.

    Raises:
        Refused: no such file or column, an unreadable line, splits that overlap, or no row left in one.
    """
    found = read_records(data)
    records = sample_records(found, data)
    rows, homes, dropped = clean_records(records, data)
    if len(records) < len(found):
        dropped[f"not among the {data.sample} sampled"] = len(found) - len(records)
    splits = split_by_column(rows, homes) if data.columns.split else split_by_hash(rows, data)
    limit = data.train_rows or data.default_rows
    if limit is not None and len(splits["train"]) > limit:
        dropped[f"beyond data.{'train' if data.train_rows else 'default'}_rows={limit}"] = len(splits["train"]) - limit
        splits["train"] = splits["train"][:limit]
    for name in ("train", "validation"):
        if not splits[name]:
            by_share = name == "validation" and not data.columns.split
            share = f" (data.validation_fraction={data.validation_fraction})" if by_share else ""
            what = f"no row is left in the {name} split of {len(rows)} usable rows{share}"
            raise Refused(f"data {data.path or data.name}", what)
    return Splits(splits["train"], splits["validation"], splits["test"], len(found), dropped)


def source_fingerprint(data: Data) -> str:
    """What names the source before it is read: a file's sha256, the wheel's, or repository@revision.

    Raises:
        Refused: ``data.path`` is no file.
    """
    if data.path:
        path = find_data_file(data.path)
        with path.open("rb") as file:
            return f"file:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    if data.hub_id:
        return f"{data.hub_id}@{data.revision or 'main'}"
    if data.wheel:
        return f"wheel:{data.wheel.sha256[:16]}"
    return f"tiny:{data.tiny}"


# --- reading -----------------------------------------------------------------------------------------------------


def read_records(data: Data) -> list[dict[str, Any]]:
    """The source's rows as dicts, before any check of their content."""
    if data.path:
        records = _read_file(find_data_file(data.path))
    elif data.hub_id:
        records = _read_hub(data)
    elif data.wheel:
        records = _read_catalogue(fetch_wheel_file(data.wheel, f"data {data.name}"))
    else:
        records = make_tiny_records(data.tiny or 0)
    if not records:
        raise Refused(f"data {data.path or data.name}", "is empty: it holds no row")
    return records


def sample_records(records: list[dict[str, Any]], data: Data) -> list[dict[str, Any]]:
    """``data.sample`` of the rows, as ``pandas.DataFrame.sample`` draws them; all where there are no more."""
    if data.sample is None or data.sample >= len(records):
        return records
    import pandas

    chosen = pandas.Series(range(len(records))).sample(n=data.sample, random_state=data.sample_seed)
    return [records[index] for index in chosen]


def find_data_file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*") if p.suffix in READERS] if file.parent.is_dir() else []
        raise Refused(f"data.path = {path}", "is no file", siblings[:10], file.name)
    if file.suffix not in READERS:
        raise Refused(f"data.path = {path}", f"has an unknown ending {file.suffix!r}", READERS, file.suffix)
    return file


def _read_file(path: Path) -> list[dict[str, Any]]:
    return READERS[path.suffix](path)


def _text_lines(path: Path) -> list[str]:
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise Refused(
                f"{path}, line {number}", f"is not UTF-8 (byte 0x{byte:02x} at column {error.start + 1})"
            ) from None
    return lines


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            what = error.msg.removesuffix(" at")  # "Unterminated string starting at"
            raise Refused(f"{path}, line {number}", f"is broken JSON ({what}, column {error.colno})") from None
        if not isinstance(record, dict):
            raise Refused(f"{path}, line {number}", f"holds a {type(record).__name__}, not an object with columns")
        records.append(record)
    return records


def _read_csv(path: Path) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO("\n".join(_text_lines(path))), strict=True)  # else an open quote eats all rows
    records = []
    try:
        for record in reader:
            if None in record:
                what = "has more cells than the header: a text with a comma in it must stand in quotes"
                raise Refused(f"{path}, line {reader.reader.line_num}", what)
            records.append(dict(record))
    except csv.Error as error:
        raise Refused(f"{path}, line {reader.reader.line_num}", f"is broken CSV ({error})") from None
    return records


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.lib.ArrowInvalid, OSError) as error:
        raise Refused(str(path), f"is no readable parquet file ({str(error).splitlines()[0]})") from None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _read_hub(data: Data) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(data.hub_id, revision=data.revision, split="train")
    except Exception as error:  # the hub's client raises dozens of types; to a person they are one thing
        what = f"could not be loaded from the hub ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        raise Refused(f"data {data.hub_id}", what) from error
    return [dict(record) for record in loaded]


def _read_catalogue(path: Path) -> list[dict[str, Any]]:
    """FAIRsharing's records as bioregistry ships them: those with a keyword and 20 to 120 words of description."""
    records = []
    for record in json.loads(path.read_text(encoding="utf-8")).values():
        words = len((record.get("description") or "").split())
        if record.get("keywords") and 20 <= words <= 120 and len(record["name"]) < 80:
            row = {"product": record["name"], "category": record["keywords"][0], "description": record["description"]}
            records.append(row)
    return records


def make_tiny_records(count: int) -> list[dict[str, Any]]:
    """``count`` made-up products with short descriptions; the same for the same count, and a prefix of more."""
    draw = random.Random(0)
    colours, things = ("red", "blue", "green", "grey"), ("lamp", "chair", "mouse", "kettle", "clock")
    uses = ("the office", "the kitchen", "a small room", "long journeys")
    records = []
    for number in range(count):
        colour, thing, use = draw.choice(colours), draw.choice(things), draw.choice(uses)
        text = f"The {colour} {thing} number {number} is made for {use}. It is light and it lasts."
        records.append({"product": f"{colour} {thing} {number}", "category": thing, "description": text})
    return records


# --- cleaning and splitting --------------------------------------------------------------------------------------


def clean_records(records: list[dict[str, Any]], data: Data) -> tuple[list[Row], list[str], dict[str, int]]:
    columns = data.columns
    present = list(dict.fromkeys(key for record in records for key in record))
    for role in ("product", "category", "description", "split"):
        column = getattr(columns, role)
        if column is not None and column not in present:
            raise Refused(
                f"data.columns.{role}", f"there is no column {column!r} in {data.path or data.name}", present, column
            )
    rows, homes, seen = [], [], set()  # the same row in two splits is no repetition but an overlap
    dropped: dict[str, int] = {}
    for record in records:
        product, description = clean_text(record.get(columns.product)), clean_text(record.get(columns.description))
        category = clean_text(record.get(columns.category)) if columns.category else ""
        row = Row(product, category or None, description)
        home = str(record.get(columns.split)) if columns.split else ""
        why = None if product and description else f"empty {columns.product if not product else columns.description}"
        why = why or ("repeated" if (row, home) in seen else None)
        if why:
            dropped[why] = dropped.get(why, 0) + 1
            continue
        seen.add((row, home))
        rows.append(row)
        homes.append(home)
    return rows, homes, dropped


def clean_text(value: Any) -> str:
    text = "" if value is None or value != value else str(value).strip()
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can spell and no file can hold


def hash_share(row: Row, seed: int) -> float:
    """A number in [0, 1) that depends on what the row asks and the seed alone: rows that ask the same share it."""
    digest = hashlib.sha256("\x1f".join((str(seed), *row.asked)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_by_hash(rows: list[Row], data: Data) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_NAMES}
    shares = {row: hash_share(row, data.split_seed) for row in rows}
    for row in sorted(rows, key=lambda row: (shares[row], row.description)):
        held_out = data.test_fraction + data.validation_fraction
        share = shares[row]
        home = "test" if share < data.test_fraction else "validation" if share < held_out else "train"
        splits[home].append(row)
    return splits


def split_by_column(rows: list[Row], homes: list[str]) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_NAMES}
    for row, home in zip(rows, homes, strict=True):
        if home not in splits:
            raise Refused("data.columns.split", f"holds {home!r} (product {row.product!r})", SPLIT_NAMES, home)
        splits[home].append(row)
    for name, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        asked = {row.asked for row in splits[other]}
        shared = [row for row in splits[name] if row.asked in asked]
        if shared:
            count = f"{len(shared)} of the {name} split's prompts are in the {other} split too"
            raise Refused("data.columns.split", f"{count}, first {shared[0].product!r}")
    return splits
