"""`python -m sweep.status [NAME] [--runs DIR]`: a sweep seen from another terminal. Reads files, writes none.

What is done, its results say; what runs, the orchestrator writes down every two seconds (``results.progress_file``).
"""

import argparse
import dataclasses
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lora_sweep.errors import EXIT_COMPLETE, EXIT_REFUSED, Refused
from lora_sweep.runs import files, results
from lora_sweep.runs.locks import holder, is_claimed
from sweep.report.analysis.load import number
from sweep.status.progress import Board, Running
from sweep.status.table import table
from sweep.store.sweep_file import SweepEntry, SweepFile, find_newest_sweep, load_sweep_file
from sweep.text import fit_one_line, format_duration

STALE_SECONDS = 30  # the orchestrator writes every two
PIPED_WIDTH = 100  # columns, where nobody says how many there are
MAX_FAILED = 20
REASON_LIMIT, LABEL_LIMIT = 200, 80  # characters


@dataclass(frozen=True)
class Seen:
    """A trial as its results say: ``status`` is one of results.STATUSES, ``waiting``, ``running`` or ``broken``."""

    trial_id: str
    label: str
    status: str
    reason: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 78 when there is no such sweep."""
    parser = argparse.ArgumentParser(prog="python -m sweep.status", description="Show how far a sweep is.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep; left out: the one that was started last")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    given = parser.parse_args(arguments)
    try:
        show(given.runs, given.name or find_newest_sweep(given.runs))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_COMPLETE


def show(runs: Path, name: str) -> None:
    """Print what the files say.

    Raises:
        Refused: there is no such sweep; in the words of the report.
    """
    sweep = load_sweep_file(runs, name)
    seen = [look(runs, entry) for entry in sweep.trials]
    claimed, claim_words = claim_of(runs, name)
    board = Board(name, len(seen), time.time())
    progress_words = add_progress(board, runs) if claimed else None
    seen = settle(board, seen)
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width).print(table(board, board.started))
    print("\n".join(["", *state_lines(seen, claim_words, progress_words, sweep), *failed_lines(seen)]))


def settle(board: Board, seen: list[Seen]) -> list[Seen]:
    """Make the board and the results agree: they were not read in one moment, and a result is the later word."""
    complete = {(each.trial_id, each.label) for each in seen if each.status == "complete"}
    rows = {place: each for place, each in board.running.items() if (each.trial_id, each.label) not in complete}
    at_work = {(each.trial_id, each.label) for each in rows.values()}
    board.running = rows
    seen = [
        dataclasses.replace(each, status="running", reason=None) if (each.trial_id, each.label) in at_work else each
        for each in seen
    ]
    board.counts = dict(Counter(each.status for each in seen))
    return seen


def look(runs: Path, entry: SweepEntry) -> Seen:
    """One trial of the sweep file. Its files are not hashed: the next run does that."""
    trial_id, label = entry.trial_id, entry.label or entry.trial_id
    folder = files.trial_folder(runs, trial_id)
    for path in (folder.result, folder.evaluation(entry.eval_id).result):
        try:
            outcome = files.read_json(path)
            if outcome is None and path.exists():
                return Seen(trial_id, label, "broken", f"{path.name} is torn")
        except OSError as error:
            return Seen(trial_id, label, "broken", f"{path.name} cannot be read ({error.strerror})")
        status = (outcome or {}).get("status")
        if outcome is None or status is None:
            return Seen(trial_id, label, "waiting")
        if status != "complete":
            return Seen(trial_id, label, str(status), str(outcome.get("reason") or "no reason was recorded"))
    return Seen(trial_id, label, "complete")


def claim_of(runs: Path, name: str) -> tuple[bool, str]:
    """Whether an orchestrator runs the sweep, and the words for it."""
    lock = files.sweep_lock(runs, name)
    try:
        if is_claimed(lock):
            return True, f"it runs: {fit_one_line(holder(lock), REASON_LIMIT)}"
    except OSError as error:
        return False, f"whether it runs cannot be told ({error.strerror})"
    return False, "it does not run"


def add_progress(board: Board, runs: Path) -> str:
    """Put what runs on the board, and say how old this news is."""
    path = files.progress_file(runs, board.name)
    try:
        written = path.stat().st_mtime
        if written < files.sweep_lock(runs, board.name).stat().st_mtime:
            return "what runs it has not written down yet"  # an earlier one, that was killed, did
        progress = files.read_json(path)
    except OSError:
        return "what runs it has not written down yet"
    if progress is None:
        return "what runs cannot be read: its progress.json is torn"
    listed = progress.get("running")
    board.running = dict(enumerate(filter(None, map(read_running, listed if isinstance(listed, list) else []))))
    board.seconds_left = number(progress.get("seconds_left"))
    age = max(0.0, time.time() - written)
    if age > STALE_SECONDS:
        return f"but its last word is {format_duration(age)} old"
    return f"the rows are {format_duration(age)} old"


def read_running(entry: Any) -> Running | None:
    """One of Board.to_json()'s rows; None for what is none."""
    names = [field.name for field in dataclasses.fields(Running)]
    if not isinstance(entry, dict) or number(entry.get("started")) is None:
        return None
    if not all(isinstance(entry.get(name), str) for name in ("trial_id", "label", "device")):
        return None
    return Running(**{name: entry[name] for name in names if name in entry})


def state_lines(seen: list[Seen], claim_words: str, progress_words: str | None, sweep: SweepFile) -> list[str]:
    """Whether it runs, and what there is to do where it does not."""
    if progress_words:
        return [f"{claim_words}; {progress_words}"]
    left = sum(each.status not in results.SETTLED for each in seen)
    if not seen:
        return [f"{claim_words}; it has no trials"]
    if not left:
        return [f"{claim_words}; nothing is left to do"]
    command = fit_one_line(sweep.command or "no command was recorded", 100_000)
    return [f"{claim_words}; {left} of {len(seen)} are left. Go on with:", f"  {command}"]


def failed_lines(seen: list[Seen]) -> list[str]:
    """The trials that ended otherwise than complete, each with the first line of its reason."""
    failed = [each for each in seen if each.reason is not None]
    if not failed:
        return []
    lines = []
    for each in failed[:MAX_FAILED]:
        reason = next((line for line in str(each.reason).splitlines() if line.strip()), "")
        words = (
            fit_one_line(each.label, LABEL_LIMIT),
            fit_one_line(each.status, LABEL_LIMIT),
            fit_one_line(reason, REASON_LIMIT),
        )
        lines.append("  " + ": ".join(words))
    more = len(failed) - len(lines)
    return ["", "not complete:", *lines, *([f"  and {more} more"] if more else [])]


if __name__ == "__main__":
    sys.exit(main())
