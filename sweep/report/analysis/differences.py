"""Where rows differ though nobody varied it: what they were made from, and by which code, libraries and device.

A row is made in two steps, each of which can have been made elsewhere: its training, and the evaluation that ranks it.
"""

from collections.abc import Iterable

from lora_sweep.runs.results import TrialResult
from sweep.report.analysis.load import Row, Sweep, dig
from sweep.store.drift import NOT_RECORDED, made_from
from sweep.text import format_setting

SOURCES = ("model ", "data ")  # how the names of what rows were made from begin
Marks = dict[str, list[str]]  # a value, and the marks of the rows that have it


def differing(sweep: Sweep, rows: Iterable[Row]) -> dict[str, Marks]:
    """What should be one value and has several among ``rows``, unknown values aside."""
    wanted, paths = {row["mark"] for row in rows}, _paths(sweep)
    found: dict[str, Marks] = {}
    for row, result in zip(sweep.rows, sweep.results, strict=True):
        if row["mark"] in wanted:
            values = [(name, _value(result, path)) for name, path in paths.items()]
            for name, value in [*made_from(result.config, result.training).values(), *values]:
                if value:
                    found.setdefault(name, {}).setdefault(value, []).append(row["mark"])
    return {name: marks for name, marks in found.items() if len(marks) > 1}


def makers(names: Iterable[str]) -> list[str]:
    """Those of the names that say by what a row was made, and not from what."""
    names = [name for name in names if not name.startswith(SOURCES)]
    return [name for name in names if name in ("code", "device", "dtype", "adapter dtype") or name.endswith(" version")]


def packages(sweep: Sweep) -> list[str]:
    """Every package whose version a row knows; ours and Python first."""
    parts = [part for result in sweep.results for part in (result.training, result.evaluation)]
    versions = [dig(part, "provenance.versions") for part in parts]
    found = {str(name) for each in versions if isinstance(each, dict) for name in each if "." not in str(name)}
    return sorted(found, key=lambda name: (name != "lora-sweep", name != "python", name))


def _paths(sweep: Sweep) -> dict[str, str]:
    return {
        "rows fingerprint": "data.rows_fingerprint",
        "code": "provenance.code",
        "device": "provenance.device",
        "dtype": "provenance.dtype",
        "adapter dtype": "provenance.adapter_dtype",
        "git commit": "provenance.git_commit",
        **{f"{package} version": f"provenance.versions.{package}" for package in packages(sweep)},
    }


def _value(result: TrialResult, path: str) -> str:
    """Of the training, and of the evaluation where that differs; "" where neither is known."""
    parts = [part for part in (result.training, result.evaluation) if part]
    values = [dig(part, path) for part in parts]
    if path == "provenance.code":  # written before code was recorded, so by other code than what is recorded
        made = [isinstance(dig(part, "provenance"), dict) for part in parts]
        values = [NOT_RECORDED if known and value is None else value for known, value in zip(made, values, strict=True)]
    return ", evaluation ".join(dict.fromkeys(format_setting(value) for value in values if value is not None))
