"""Rows: the three texts of each record that make its prompt and its response, checked and cleaned."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_sweep.config.schema import Data
from lora_sweep.data.sources import Record
from lora_sweep.errors import Refused


@dataclass(frozen=True)
class Row:
    """One example: the prompt asks for ``product`` and ``category``, and ``description`` is the right response."""

    product: str
    category: str | None
    description: str

    @property
    def prompt_fields(self) -> tuple[str, str]:
        """The product and the category: rows with equal fields have the same prompt."""
        return self.product, self.category or ""


@dataclass(frozen=True)
class CleanRows:
    """The usable rows of a source, in the order of the source.

    Attributes:
        rows: without repeats and without empty texts.
        split_names: for each row, the value of its split column; ``""`` where ``data.columns`` names no such column.
        dropped: reason: how many records were left out for it.
    """

    rows: list[Row]
    split_names: list[str]
    dropped: dict[str, int]


def clean_records(records: Sequence[Record], data: Data) -> CleanRows:
    """The rows that ``data.columns`` selects from ``records``, without empty and repeated ones.

    Raises:
        Refused: a column that ``data.columns`` names is missing.
    """
    columns = data.columns
    check_columns(records, data)
    rows, split_names = [], []
    seen: set[tuple[Row, str]] = set()  # by split: a row in two splits is a leak, which splits.py refuses
    dropped: Counter[str] = Counter()
    for record in records:
        product, description = (
            read_text_cell(record.get(columns.product)),
            read_text_cell(record.get(columns.description)),
        )
        category = read_text_cell(record.get(columns.category)) if columns.category else ""
        row = Row(product, category or None, description)
        split_name = str(record.get(columns.split)) if columns.split else ""
        if not (product and description):
            dropped[f"empty {columns.product if not product else columns.description}"] += 1
        elif (row, split_name) in seen:
            dropped["repeated"] += 1
        else:
            seen.add((row, split_name))
            rows.append(row)
            split_names.append(split_name)
    return CleanRows(rows, split_names, dict(dropped))


def check_columns(records: Sequence[Record], data: Data) -> None:
    """Refuse a name in ``data.columns`` that no record has."""
    present = list(dict.fromkeys(key for record in records for key in record))
    for role in ("product", "category", "description", "split"):
        column = getattr(data.columns, role)
        if column is not None and column not in present:
            fault = f"there is no column {column!r} in {data.path or data.name}"
            raise Refused(f"data.columns.{role}", fault, present, column)


def read_text_cell(value: object) -> str:
    """The value as text, without white space around it; ``""`` for None and NaN."""
    text = "" if value is None or value != value else str(value).strip()
    # JSON can spell half a surrogate pair, which no UTF-8 file can hold and no tokenizer takes: it becomes "?".
    return text.encode("utf-8", "replace").decode()
