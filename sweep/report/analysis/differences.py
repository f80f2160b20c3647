"""Where rows differ though nobody varied it: what they were made from, and by which code, libraries and device.

A row is made in two steps, each of which can have been made elsewhere: its training, and the evaluation that ranks it.
"""

from collections.abc import Callable, Iterable
from functools import partial

from lora_sweep.runs.records import EvaluationResult, TrialRecord, TrialResult
from sweep.report.analysis.load import Row, Sweep
from sweep.store.drift import NOT_RECORDED, list_row_sources
from sweep.text import format_setting

SOURCES = ("model ", "data ")  # how the names of what rows were made from begin
Part = TrialResult | EvaluationResult
Marks = dict[str, list[str]]  # a value, and the marks of the rows that have it


def differing(sweep: Sweep, rows: Iterable[Row]) -> dict[str, Marks]:
    """What should be one value and has several among ``rows``, unknown values aside."""
    wanted, getters = {row["mark"] for row in rows}, _getters(sweep)
    found: dict[str, Marks] = {}
    for row, result in zip(sweep.rows, sweep.results, strict=True):
        if row["mark"] in wanted:
            values = [(name, _value(result, get)) for name, get in getters.items()]
            for name, value in [*list_row_sources(result.config, result.training).values(), *values]:
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
    names = {name for part in parts for name in part.provenance.versions if "." not in name}
    return sorted(names, key=lambda name: (name != "lora-sweep", name != "python", name))


def _getters(sweep: Sweep) -> dict[str, Callable[[Part], str | None]]:
    """How to read what should be one value from a training or an evaluation."""

    def read_version(package: str, part: Part) -> str | None:
        return part.provenance.versions.get(package)

    return {
        "rows fingerprint": lambda part: part.data.rows_fingerprint if isinstance(part, TrialResult) else None,
        "code": lambda part: part.provenance.code or (NOT_RECORDED if part.provenance.is_recorded else None),
        "device": lambda part: part.provenance.device,
        "dtype": lambda part: part.provenance.dtype,
        "adapter dtype": lambda part: part.provenance.adapter_dtype,
        "git commit": lambda part: part.provenance.git_commit,
        **{f"{package} version": partial(read_version, package) for package in packages(sweep)},
    }


def _value(result: TrialRecord, get: Callable[[Part], str | None]) -> str:
    """Of the training, and of the evaluation where that differs; "" where neither is known."""
    values = [get(result.training), get(result.evaluation)]
    return ", evaluation ".join(dict.fromkeys(format_setting(value) for value in values if value is not None))
