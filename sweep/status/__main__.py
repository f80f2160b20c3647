"""``python -m sweep.status [NAME] [--runs DIR]``: how far a sweep is, seen from another terminal. Writes no file."""

import argparse
import sys
import time
from pathlib import Path

from lora_sweep.errors import EXIT_COMPLETE, EXIT_REFUSED, Refused
from lora_sweep.runs import results
from sweep.status.progress import SweepProgress
from sweep.status.read import TrialStatus, add_running, read_lock, read_trial_status, reconcile_trials
from sweep.status.table import draw_progress
from sweep.store.sweep_file import find_newest_sweep, load_sweep_file
from sweep.tables import print_renderable
from sweep.text import fit_one_line

MAX_FAILED_TRIALS = 20
MAX_REASON_CHARACTERS, MAX_LABEL_CHARACTERS, MAX_COMMAND_CHARACTERS = 200, 80, 100_000


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, or 78 if there is no such sweep."""
    parser = argparse.ArgumentParser(prog="python -m sweep.status", description="Show how far a sweep is.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep (default: the one that was started last)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    options = parser.parse_args(arguments)
    try:
        print_status(options.runs, options.name or find_newest_sweep(options.runs))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_COMPLETE


def print_status(runs: Path, name: str) -> None:
    """Print the sweep's progress, whether it runs, and its failed trials.

    Raises:
        Refused: there is no such sweep.
    """
    sweep = load_sweep_file(runs, name)
    trials = [read_trial_status(runs, entry) for entry in sweep.trials]
    is_running, lock_sentence = read_lock(runs, name)
    progress = SweepProgress(name, len(trials), time.time())
    age_sentence = add_running(progress, runs) if is_running else None
    trials = reconcile_trials(progress, trials)
    print_renderable(draw_progress(progress, progress.started))
    lines = list_next_steps(trials, lock_sentence, sweep.command)
    if age_sentence:
        lines = [f"{lock_sentence}; {age_sentence}"]
    print("\n".join(["", *lines, *list_failures(trials)]))


def list_next_steps(trials: list[TrialStatus], lock_sentence: str, command: str) -> list[str]:
    """The lines about a sweep that does not run: how much is left, and the command that resumes it."""
    remaining = sum(trial.status not in results.FINAL_STATUSES for trial in trials)
    if not trials:
        return [f"{lock_sentence}; it has no trials"]
    if not remaining:
        return [f"{lock_sentence}; nothing is left to do"]
    command = fit_one_line(command or "no command was recorded", MAX_COMMAND_CHARACTERS)
    return [f"{lock_sentence}; {remaining} of {len(trials)} are left. Go on with:", f"  {command}"]


def list_failures(trials: list[TrialStatus]) -> list[str]:
    """A line for each trial that ended without being complete, with the first line of its reason."""
    failed = [trial for trial in trials if trial.reason is not None]
    if not failed:
        return []
    lines = []
    for trial in failed[:MAX_FAILED_TRIALS]:
        reason = next((line for line in str(trial.reason).splitlines() if line.strip()), "")
        label, status = (fit_one_line(text, MAX_LABEL_CHARACTERS) for text in (trial.label, trial.status))
        lines.append(f"  {label}: {status}: {fit_one_line(reason, MAX_REASON_CHARACTERS)}")
    more = len(failed) - len(lines)
    return ["", "not complete:", *lines, *([f"  and {more} more"] if more else [])]


if __name__ == "__main__":
    sys.exit(main())
