"""Votes of people on which of two unnamed texts is better.

The page saves votes as a file, which a person moves into the sweep's folder. So a file can hold anything: lines that
are no votes are left out, and a note says how many. A vote that is in two files, because it was saved twice, counts
once.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_sweep.scoring.intervals import wilson_interval
from sweep.report.analysis.configurations import Key
from sweep.text import count_noun, escape_controls, shorten_text

FORMAT = "lora-sweep votes 1"
MAX_FILE_BYTES = 16 * 2**20  # 50,000 votes, more than people cast
WINNERS = ("left", "right", "tie")
VOTE_ID = re.compile(r"[0-9a-f]{8,64}")
TRIAL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # as in a sweep's file


@dataclass(frozen=True)
class Vote:
    """One vote. ``left_key`` and ``right_key`` name the trials that wrote the texts; ``winner`` is one of WINNERS."""

    vote_id: str
    prompt_id: str
    left_key: Key
    right_key: Key
    winner: str


@dataclass(frozen=True)
class Tally:
    """The votes on one configuration.

    ``win_rate`` is 0-1 and counts a tie as half; ``low`` to ``high`` is Wilson's 95 % interval.
    """

    wins: int
    losses: int
    ties: int
    win_rate: float
    low: float
    high: float


def read_votes(folder: Path) -> tuple[list[Vote], list[str]]:
    """The votes in every votes*.json of a sweep's folder, and a sentence on each file that could not be read whole.

    The votes are in the order of the file names and, within a file, of its lines: the same files give the same list.
    """
    votes: dict[str, Vote] = {}
    notes = []
    for path in sorted(folder.glob("votes*.json")):
        file_votes, note = read_file(path)
        for vote in file_votes:
            votes.setdefault(vote.vote_id, vote)
        if note:
            notes.append(f"{shorten_text(escape_controls(path.name), 80)} {note}")
    return list(votes.values()), notes


def count_votes(votes: Sequence[Vote], keys: Mapping[str, Sequence[Key]]) -> dict[str, Tally]:
    """The votes on each configuration that has any, in the order of ``keys``.

    A vote counts if its two texts are from two different configurations. A vote on an evaluation that the sweep no
    longer has does not count, because the report does not show its texts.

    Args:
        keys: the keys of the trials of each configuration, by its mark.
    """
    tallies = {}
    for mark, (wins, losses, ties) in count_by_mark(votes, keys).items():
        total, successes = wins + losses + ties, wins + ties / 2
        if total:
            tallies[mark] = Tally(wins, losses, ties, successes / total, *wilson_interval(successes, total))
    return tallies


def write_page_votes(
    votes: Sequence[Vote], notes: Sequence[str], keys: Mapping[str, Sequence[Key]]
) -> dict[str, object]:
    """``data["votes"]`` of the page. It holds only counts; the page adds the votes of its reader."""
    counts = count_by_mark(votes, keys)
    return {
        "count": sum(map(sum, counts.values())) // 2,
        "notes": list(notes),
        "rows": {mark: counted for mark, counted in counts.items() if any(counted)},
    }


def count_by_mark(votes: Sequence[Vote], keys: Mapping[str, Sequence[Key]]) -> dict[str, list[int]]:
    """[wins, losses, ties] of each configuration, by its mark."""
    mark_of = {key: mark for mark, trials in keys.items() for key in trials}
    counts = {mark: [0, 0, 0] for mark in keys}
    for vote in votes:
        left_mark, right_mark = mark_of.get(vote.left_key), mark_of.get(vote.right_key)
        if left_mark is None or right_mark is None or left_mark == right_mark:
            continue
        counts[left_mark][(0, 1, 2)[WINNERS.index(vote.winner)]] += 1
        counts[right_mark][(1, 0, 2)[WINNERS.index(vote.winner)]] += 1
    return counts


def read_file(path: Path) -> tuple[list[Vote], str]:
    """The votes of one file, and a note on what is wrong with the file; "" if nothing is."""
    try:
        if not path.is_file():  # a folder, or a pipe: reading a pipe would wait
            return [], "is not a file"
        if path.stat().st_size > MAX_FILE_BYTES:
            return [], f"is larger than {MAX_FILE_BYTES // 2**20} MiB and is left out"
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return [], f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return [], "is not JSON"
    lines = content.get("votes") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(lines, list):
        return [], f"is not a file of votes (format {FORMAT!r})"
    votes = [vote for line in lines if (vote := parse_vote(line)) is not None]
    wrong = len(lines) - len(votes)
    note = f"holds {count_noun(wrong, 'vote')} that cannot be read, left out of {len(lines)}" if wrong else ""
    return votes, note


def parse_vote(line: object) -> Vote | None:
    """The line as a vote; None if it is no vote."""
    if not isinstance(line, dict):
        return None
    vote_id, prompt_id, winner = line.get("id"), line.get("prompt_id"), line.get("winner")
    left_key, right_key = parse_key(line.get("left")), parse_key(line.get("right"))
    if (
        left_key is None
        or right_key is None
        or left_key == right_key
        or winner not in WINNERS
        or not isinstance(prompt_id, str)
    ):
        return None
    if not isinstance(vote_id, str) or not VOTE_ID.fullmatch(vote_id):
        return None
    return Vote(vote_id, prompt_id, left_key, right_key, str(winner))


def parse_key(value: object) -> Key | None:
    """The ids of a trial and of its evaluation; None if the value is not a list of two ids."""
    parts = value if isinstance(value, list) and len(value) == 2 else [None, None]
    ids = [part for part in parts if isinstance(part, str) and TRIAL_ID.fullmatch(part)]
    return (ids[0], ids[1]) if len(ids) == 2 else None
