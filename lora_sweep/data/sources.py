"""Sources of records: a file, the hub, a wheel of the package index, or made-up products.

A record is one row of the source, as a dict with a value for each column. ``rows`` checks its content.
"""

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from lora_sweep.config.schema import Data
from lora_sweep.data.wheels import fetch_wheel_file
from lora_sweep.errors import Refused, describe_error

Record: TypeAlias = Mapping[str, object]  # column -> value, of any JSON type

# The records of the catalogue that are kept (see read_catalogue).
CATALOGUE_WORDS = range(20, 121)  # words of a description
CATALOGUE_NAME_CHARACTERS = range(80)


def read_records(data: Data) -> list[Record]:
    """All records of the source that ``data`` names, in the order of the source.

    Raises:
        Refused: there is no such file, it cannot be read, the hub does not answer, or the source is empty.
    """
    if data.path:
        path = find_data_file(data.path)
        records = READERS[path.suffix](path)
    elif data.hub_id:
        records = read_hub(data)
    elif data.wheel:
        records = read_catalogue(fetch_wheel_file(data.wheel, f"data {data.name}"))
    else:
        records = list(make_tiny_records(data.tiny or 0))
    if not records:
        raise Refused(f"data {data.path or data.name}", "is empty: it holds no row")
    return records


def sample_records(records: list[Record], data: Data) -> list[Record]:
    """``data.sample`` records, drawn as ``pandas.DataFrame.sample`` draws them; all if there are not more."""
    if data.sample is None or data.sample >= len(records):
        return records
    import pandas

    indices = pandas.Series(range(len(records))).sample(n=data.sample, random_state=data.sample_seed)
    return [records[index] for index in indices]


def fingerprint_source(data: Data) -> str:
    """An identifier of the source, made without parsing its records.

    ``file:`` and the sha256 of the file, ``wheel:`` and the sha256 of the wheel, ``repository@revision``, or ``tiny:``
    and the number of rows.

    Raises:
        Refused: ``data.path`` is not a file.
    """
    if data.path:
        with find_data_file(data.path).open("rb") as file:
            return f"file:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    if data.hub_id:
        return f"{data.hub_id}@{data.revision or 'main'}"
    if data.wheel:
        return f"wheel:{data.wheel.sha256[:16]}"
    return f"tiny:{data.tiny}"


# --- files -------------------------------------------------------------------------------------------------------


def find_data_file(path: str) -> Path:
    """The file at ``path``; refused where there is none, or where its ending has no reader."""
    file = Path(path).expanduser()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*") if p.suffix in READERS] if file.parent.is_dir() else []
        raise Refused(f"data.path = {path}", "is no file", siblings[:10], file.name)
    if file.suffix not in READERS:
        raise Refused(f"data.path = {path}", f"has an unknown ending {file.suffix!r}", READERS, file.suffix)
    return file


def decode_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their line ends; a byte order mark at its start is dropped."""
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):  # str.splitlines would split at U+2028
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise Refused(
                f"{path}, line {number}", f"is not UTF-8 (byte 0x{byte:02x} at column {error.start + 1})"
            ) from None
    return lines


def read_jsonl(path: Path) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(decode_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            fault = error.msg.removesuffix(" at")  # "Unterminated string starting at"
            raise Refused(f"{path}, line {number}", f"is broken JSON ({fault}, column {error.colno})") from None
        if not isinstance(record, dict):
            raise Refused(f"{path}, line {number}", f"holds a {type(record).__name__}, not an object with columns")
        records.append(record)
    return records


def read_csv(path: Path) -> list[Record]:
    # Without strict, a quote that is never closed would swallow all rows after it.
    reader = csv.DictReader(io.StringIO("\n".join(decode_lines(path))), strict=True)
    records: list[Record] = []
    try:
        for record in reader:
            if None in record:
                fault = "has more cells than the header: a text with a comma in it must stand in quotes"
                raise Refused(f"{path}, line {reader.reader.line_num}", fault)
            records.append(dict(record))
    except csv.Error as error:
        raise Refused(f"{path}, line {reader.reader.line_num}", f"is broken CSV ({error})") from None
    return records


def read_parquet(path: Path) -> list[Record]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.lib.ArrowInvalid, OSError) as error:
        raise Refused(str(path), f"is no readable parquet file ({describe_error(error)})") from None
    records: list[Record] = table.to_pylist()
    return records


READERS: dict[str, Callable[[Path], list[Record]]] = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


# --- other sources -----------------------------------------------------------------------------------------------


def read_hub(data: Data) -> list[Record]:
    """The train split of a data set on the Hugging Face hub."""
    import datasets

    try:
        dataset = datasets.load_dataset(data.hub_id, revision=data.revision, split="train")
    except Exception as error:  # the hub's client raises dozens of types; all get the same message
        fault = f"could not be loaded from the hub ({describe_error(error)})"
        raise Refused(f"data {data.hub_id}", fault) from error
    return [dict(record) for record in dataset]


def read_catalogue(path: Path) -> list[Record]:
    """The records of FAIRsharing's catalogue, as the package bioregistry ships them.

    Keeps the records that have a keyword, a name of fewer than 80 characters and a description of 20 to 120 words.
    """
    records: list[Record] = []
    for record in json.loads(path.read_text(encoding="utf-8")).values():
        name, keywords, description = record["name"], record.get("keywords"), record.get("description") or ""
        has_right_length = len(description.split()) in CATALOGUE_WORDS and len(name) in CATALOGUE_NAME_CHARACTERS
        if keywords and has_right_length:
            records.append({"product": name, "category": keywords[0], "description": description})
    return records


def make_tiny_records(count: int) -> list[dict[str, str]]:
    """``count`` made-up products with short descriptions. A larger count only adds products after these."""
    generator = random.Random(0)
    colours, things = ("red", "blue", "green", "grey"), ("lamp", "chair", "mouse", "kettle", "clock")
    uses = ("the office", "the kitchen", "a small room", "long journeys")
    records = []
    for number in range(count):
        colour, thing, use = generator.choice(colours), generator.choice(things), generator.choice(uses)
        text = f"The {colour} {thing} number {number} is made for {use}. It is light and it lasts."
        records.append({"product": f"{colour} {thing} {number}", "category": thing, "description": text})
    return records
