"""Unintended differences between rows: in their sources (model and data), code, libraries and device.

A row is made in two steps that can run on different machines: its training and its evaluation.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from lora_sweep.runs.records import EvaluationResult, TrialRecord, TrialResult
from sweep.report.analysis.configurations import TrialSummary
from sweep.report.analysis.load import Sweep
from sweep.store.drift import NOT_RECORDED, list_row_sources
from sweep.text import format_setting

SOURCE_PREFIXES = ("model ", "data ")  # the name of a source starts with one of them: "data catalogue"
Step: TypeAlias = TrialResult | EvaluationResult
Marks = dict[str, list[str]]  # value -> the marks of the rows that have it


def find_differences(sweep: Sweep, summaries: Iterable[TrialSummary]) -> dict[str, Marks]:
    """Every property that should have the same value in these trials and has several; unknown values do not count.

    Returns:
        name of the property -> value -> the marks of the rows that have it
    """
    marks, readers = {summary.mark for summary in summaries}, list_readers(sweep)
    values_by_name: dict[str, Marks] = {}
    for trial in sweep.trials:
        if trial.summary.mark not in marks:
            continue
        record = trial.record
        values = [(name, read_steps(record, read)) for name, read in readers.items()]
        for name, value in [*list_row_sources(record.config, record.training).values(), *values]:
            if value:
                values_by_name.setdefault(name, {}).setdefault(value, []).append(trial.summary.mark)
    return {name: values for name, values in values_by_name.items() if len(values) > 1}


def select_makers(names: Iterable[str]) -> list[str]:
    """The names of properties of code, libraries and devices; the names of sources are left out."""
    makers = ("code", "device", "dtype", "adapter dtype")
    return [
        name for name in names if not name.startswith(SOURCE_PREFIXES) and (name in makers or name.endswith(" version"))
    ]


def list_packages(sweep: Sweep) -> list[str]:
    """Every package with a recorded version; lora-sweep and Python come first."""
    steps = [step for trial in sweep.trials for step in (trial.record.training, trial.record.evaluation)]
    names = {name for step in steps for name in step.provenance.versions if "." not in name}
    return sorted(names, key=lambda name: (name != "lora-sweep", name != "python", name))


def list_readers(sweep: Sweep) -> dict[str, Callable[[Step], str | None]]:
    """For each property that should have one value: how to read it from a training or from an evaluation."""

    def read_version(package: str, step: Step) -> str | None:
        return step.provenance.versions.get(package)

    return {
        "rows fingerprint": lambda step: step.data.rows_fingerprint if isinstance(step, TrialResult) else None,
        "code": lambda step: step.provenance.code or (NOT_RECORDED if step.provenance.is_recorded else None),
        "device": lambda step: step.provenance.device,
        "dtype": lambda step: step.provenance.dtype,
        "adapter dtype": lambda step: step.provenance.adapter_dtype,
        "git commit": lambda step: step.provenance.git_commit,
        **{f"{package} version": partial(read_version, package) for package in list_packages(sweep)},
    }


def read_steps(record: TrialRecord, read: Callable[[Step], str | None]) -> str:
    """The value of the training, followed by the value of the evaluation if it differs; "" if neither is known."""
    values = [read(record.training), read(record.evaluation)]
    return ", evaluation ".join(dict.fromkeys(format_setting(value) for value in values if value is not None))
