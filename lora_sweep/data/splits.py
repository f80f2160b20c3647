"""The train, validation and test splits of a data set, and a fingerprint of their rows."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lora_sweep.config.schema import Data
from lora_sweep.data.rows import Row, clean_records
from lora_sweep.data.sources import read_records, sample_records
from lora_sweep.errors import Refused

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """The rows of the three splits.

    The rows of a split are in the order of their hashes or, with a split column, in the order of the source.

    Attributes:
        rows_read: the number of records in the source.
        dropped: reason: how many of these records are in no split because of it.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    rows_read: int
    dropped: dict[str, int]

    def compute_fingerprint(self) -> str:
        """16 hex digits that change when any row of any split changes or moves."""
        digest = hashlib.sha256()
        for name in SPLIT_NAMES:
            for row in getattr(self, name):
                digest.update(json.dumps([name, row.product, row.category, row.description]).encode())
        return digest.hexdigest()[:16]


def load_splits(data: Data) -> Splits:
    """Read, clean and split the rows of the source that ``data`` names.

    Raises:
        Refused: the source cannot be read, a column is missing, the splits overlap, or one of them has no row.
    """
    all_records = read_records(data)
    records = sample_records(all_records, data)
    clean = clean_records(records, data)
    dropped = clean.dropped
    if len(records) < len(all_records):
        dropped[f"not among the {data.sample} sampled"] = len(all_records) - len(records)
    has_column = bool(data.columns.split)
    splits = split_by_column(clean.rows, clean.split_names) if has_column else split_by_hash(clean.rows, data)
    limit = data.train_rows or data.default_rows
    if limit is not None and len(splits["train"]) > limit:
        dropped[f"beyond data.{'train' if data.train_rows else 'default'}_rows={limit}"] = len(splits["train"]) - limit
        splits["train"] = splits["train"][:limit]
    for name in ("train", "validation"):
        if not splits[name]:
            is_by_fraction = name == "validation" and not has_column
            fraction = f" (data.validation_fraction={data.validation_fraction})" if is_by_fraction else ""
            fault = f"no row is left in the {name} split of {len(clean.rows)} usable rows{fraction}"
            raise Refused(f"data {data.path or data.name}", fault)
    return Splits(splits["train"], splits["validation"], splits["test"], len(all_records), dropped)


def hash_share(row: Row, seed: int) -> float:
    """A number in [0, 1) from the row's prompt and the seed: rows with the same prompt get the same number."""
    text = "\x1f".join((str(seed), *row.prompt_fields))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_by_hash(rows: Sequence[Row], data: Data) -> dict[str, list[Row]]:
    """Split the rows by ``data.test_fraction`` and ``data.validation_fraction``, in the order of their hashes.

    The split of a row depends on its hash alone. So rows that are added to the source move no other row.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_NAMES}
    shares = {row: hash_share(row, data.split_seed) for row in rows}
    held_out = data.test_fraction + data.validation_fraction
    for row in sorted(rows, key=lambda row: (shares[row], row.description)):
        share = shares[row]
        splits["test" if share < data.test_fraction else "validation" if share < held_out else "train"].append(row)
    return splits


def split_by_column(rows: Sequence[Row], split_names: Sequence[str]) -> dict[str, list[Row]]:
    """Split the rows by the names in their split column.

    Raises:
        Refused: a name is not one of SPLIT_NAMES, or a prompt is in two splits.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLIT_NAMES}
    for row, split_name in zip(rows, split_names, strict=True):
        if split_name not in splits:
            raise Refused(
                "data.columns.split", f"holds {split_name!r} (product {row.product!r})", SPLIT_NAMES, split_name
            )
        splits[split_name].append(row)
    for name, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        prompts = {row.prompt_fields for row in splits[other]}
        shared = [row for row in splits[name] if row.prompt_fields in prompts]
        if shared:
            count = f"{len(shared)} of the {name} split's prompts are in the {other} split too"
            raise Refused("data.columns.split", f"{count}, first {shared[0].product!r}")
    return splits
