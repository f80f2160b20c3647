"""``python -m sweep [--runs DIR]``: list the commands, and the sweeps of a runs folder. Writes no file.

The console script ``lora-sweep`` starts here too: ``lora-sweep train ...`` is ``python -m lora_sweep.train ...``.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from lora_sweep.errors import EXIT_COMPLETE, Refused
from lora_sweep.runs import files
from lora_sweep.runs.records import read_number
from lora_sweep.runs.results import read_evaluation_result
from sweep.status.read import TrialStatus, read_trial_status
from sweep.store.sweep_file import SweepFile, read_sweep_file, to_seconds
from sweep.tables import Column, build_table, print_renderable
from sweep.text import format_decimals

COMMANDS = {
    "lora_sweep.train": "run or resume a sweep, and write its report; -m sweeps over several values of a key",
    "sweep.plan": "show the trials of a command, and train nothing",
    "sweep.status": "show how far a sweep is",
    "sweep.report": "write the report of a sweep again, from its results",
    "sweep.confirm": "train the best rows with more seeds, and score the winner on the test split",
    "sweep.dashboard": "save a workspace and a report of a sweep in W&B",
}
SHORT_NAMES = {module.rpartition(".")[2]: module for module in COMMANDS}  # train: lora_sweep.train
OBJECTIVE = "quality"
COLUMNS = (
    Column("sweep"),
    Column("started (UTC)"),
    Column("trials", is_flexible=True),
    Column("best row", is_flexible=True),
    Column(OBJECTIVE, "right"),
)


@dataclass(frozen=True)
class SweepSummary:
    """One sweep of a runs folder.

    Attributes:
        started: when it was started, in seconds since 1970; minus infinity if that is unknown.
        trials: the number of trials with each status, in words; or the reason why the sweep's file cannot be read.
        best: the label of the recommended row, else of the row with the highest quality; None without a complete row.
        quality: the quality of that row, 0 to 100.
    """

    name: str
    started: float
    trials: str
    best: str | None = None
    quality: float | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first word names; without one, print the lists. Returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in SHORT_NAMES:
        return run_subcommand(words[0], words[1:])
    return print_lists(words)


def run_subcommand(name: str, arguments: list[str]) -> int:
    """Do what ``python -m MODULE ARGUMENTS`` does, in this process. Returns the exit code.

    The working folder comes last on Python's path, so that a scorer in a file there is found, and a file there that is
    called ``sweep.py`` does not hide our package.
    """
    sys.argv = [f"lora-sweep {name}", *arguments]
    sys.path.append(str(Path.cwd()))
    module = SHORT_NAMES[name]
    package = find_spec(module)
    is_folder = package is not None and package.submodule_search_locations is not None
    code: int | None = import_module(f"{module}.__main__" if is_folder else module).main()
    return code or EXIT_COMPLETE


def print_lists(arguments: list[str]) -> int:
    """Print the commands, and the sweeps of a runs folder. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sweep", description="List the commands and the sweeps.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    runs = parser.parse_args(arguments).runs
    print("Commands; each has --help:")
    width = max(map(len, COMMANDS))
    for module, description in COMMANDS.items():
        print(f"  python -m {module:<{width}}  {description}")
    summaries = list_summaries(runs)
    print(f"\nSweeps in {runs}:" if summaries else f"\nNo sweeps in {runs}.")
    if summaries:
        print_renderable(build_table(COLUMNS, map(list_cells, summaries)))
    return EXIT_COMPLETE


def list_cells(summary: SweepSummary) -> list[str]:
    """The cells of one line of the table. An unknown value is ``-``."""
    started = "-"
    if summary.started > 0:
        started = datetime.fromtimestamp(summary.started, UTC).strftime("%Y-%m-%d %H:%M")
    quality = "-" if summary.quality is None else format_decimals(summary.quality, 1)
    return [summary.name, started, summary.trials, summary.best or "-", quality]


# --- reading -----------------------------------------------------------------------------------------------------


def list_summaries(runs: Path) -> list[SweepSummary]:
    """A summary of every sweep in ``runs``, the latest first."""
    summaries = [summarize_sweep(runs, path.stem) for path in sorted((runs / "sweeps").glob("*.json"))]
    return sorted(summaries, key=lambda summary: summary.started, reverse=True)


def summarize_sweep(runs: Path, name: str) -> SweepSummary:
    """A summary of one sweep. It never raises for a file that is torn, unreadable or not ours."""
    try:
        sweep = read_sweep_file(runs, name)
    except Refused as refused:
        return SweepSummary(name, to_seconds(None), str(refused))
    except OSError as error:
        return SweepSummary(name, to_seconds(None), f"its file cannot be read ({error.strerror})")
    if sweep is None:
        return SweepSummary(name, to_seconds(None), "its file is torn")
    statuses = [read_trial_status(runs, entry) for entry in sweep.trials]
    counts = Counter(trial.status for trial in statuses)
    trials = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none"
    best, quality = find_recommended(runs, name) or find_best(runs, sweep, statuses) or (None, None)
    return SweepSummary(name, to_seconds(sweep.started), trials, best, quality)


def find_recommended(runs: Path, name: str) -> tuple[str, float] | None:
    """The label and the quality of the row that report.json recommends; None without a recommendation."""
    try:
        report = files.read_json(files.report_folder(runs, name) / "report.json") or {}
    except OSError:
        return None
    rows = report.get("rows")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("mark") == report.get("recommended") and row.get("mark"):
            quality = read_number(row.get(OBJECTIVE))
            return None if quality is None else (str(row.get("label")), quality)
    return None


def find_best(runs: Path, sweep: SweepFile, statuses: list[TrialStatus]) -> tuple[str, float] | None:
    """The label and the quality of the complete trial with the highest quality; None if there is none."""

    def read_qualities() -> Iterator[tuple[float, str]]:
        for entry, trial in zip(sweep.trials, statuses, strict=True):
            if entry.kind != "baseline" and trial.status == "complete":
                evaluation = read_evaluation_result(files.trial_folder(runs, entry.trial_id).evaluation(entry.eval_id))
                quality = evaluation.metrics.get(OBJECTIVE)
                if quality is not None:
                    yield quality, trial.label

    quality, label = max(read_qualities(), default=(None, None))
    return None if quality is None or label is None else (label, quality)


if __name__ == "__main__":
    raise SystemExit(main())
