"""Which of two unnamed texts people found better, from the files that the page saves into the sweep's folder.

Owns the files' format and what is counted. A file is a person's and can hold anything: what is no vote is left out
with a note, and a vote that stands in two files (saved twice, a little later) counts once.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.scoring.intervals import wilson_interval
from sweep.text import count_noun, escape_controls, shorten_text

FORMAT = "lora-sweep votes 1"
LARGEST_FILE = 16 * 2**20  # bytes: 50,000 votes, more than people give
SIDES = ("left", "right", "tie")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # as table takes trials' names from a sweep's file

Key = tuple[str, str]  # trial_id, eval_id
Json = dict[str, Any]


@dataclass(frozen=True)
class Vote:
    """``left`` and ``right`` are what the two texts were written by; ``winner`` is one of SIDES."""

    vote_id: str
    prompt_id: str
    left: Key
    right: Key
    winner: str


@dataclass(frozen=True)
class Tally:
    """An entry's votes. ``win_rate`` 0-1, a tie counting half, with Wilson's 95 % interval ``low`` to ``high``."""

    wins: int
    losses: int
    ties: int
    win_rate: float
    low: float
    high: float


def read_votes(folder: Path) -> tuple[list[Vote], list[str]]:
    """The votes of every votes*.json in a sweep's folder, and a sentence on each file that could not be read whole.

    Files in the order of their names, votes in theirs: the same files give the same list.
    """
    votes: dict[str, Vote] = {}
    notes = []
    for path in sorted(folder.glob("votes*.json")):
        found, note = _read(path)
        for vote in found:
            votes.setdefault(vote.vote_id, vote)
        if note:
            notes.append(f"{shorten_text(escape_controls(path.name), 80)} {note}")
    return list(votes.values()), notes


def tally(votes: Sequence[Vote], keys: Mapping[str, Sequence[Key]]) -> dict[str, Tally]:
    """The votes of each entry that has any, in the order of ``keys``.

    Args:
        keys: an entry's mark -> its trials. A vote counts where both of its texts are of two different entries; a
            vote on an evaluation that the sweep no longer has is on texts that nobody sees here.
    """
    counts = {mark: counted for mark, counted in _counts(votes, keys).items() if any(counted)}
    found = {}
    for mark, (wins, losses, ties) in counts.items():
        n, successes = wins + losses + ties, wins + ties / 2
        found[mark] = Tally(wins, losses, ties, successes / n, *wilson_interval(successes, n))
    return found


def page_votes(votes: Sequence[Vote], notes: Sequence[str], keys: Mapping[str, Sequence[Key]]) -> Json:
    """``data["votes"]`` of the page, which adds what its reader votes: counts only, and how many votes they are."""
    counts = _counts(votes, keys)
    return {
        "count": sum(map(sum, counts.values())) // 2,
        "notes": list(notes),
        "rows": {mark: counted for mark, counted in counts.items() if any(counted)},
    }


def _counts(votes: Sequence[Vote], keys: Mapping[str, Sequence[Key]]) -> dict[str, list[int]]:
    """[wins, losses, ties] by mark."""
    mark_of = {key: mark for mark, trials in keys.items() for key in trials}
    counts = {mark: [0, 0, 0] for mark in keys}
    for vote in votes:
        left, right = mark_of.get(vote.left), mark_of.get(vote.right)
        if left is None or right is None or left == right:
            continue
        counts[left][(0, 1, 2)[SIDES.index(vote.winner)]] += 1
        counts[right][(1, 0, 2)[SIDES.index(vote.winner)]] += 1
    return counts


def _read(path: Path) -> tuple[list[Vote], str]:
    """One file's votes, and what is wrong with it."""
    try:
        if not path.is_file():  # a folder; a pipe, which would be waited for
            return [], "is not a file"
        if path.stat().st_size > LARGEST_FILE:
            return [], f"is larger than {LARGEST_FILE // 2**20} MiB and is left out"
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return [], f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return [], "is not JSON"
    lines = content.get("votes") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(lines, list):
        return [], f"is not a file of votes (format {FORMAT!r})"
    votes = [vote for line in lines if (vote := _vote(line)) is not None]
    wrong = len(lines) - len(votes)
    return votes, f"holds {count_noun(wrong, 'vote')} that cannot be read, left out of {len(lines)}" if wrong else ""


def _vote(line: Any) -> Vote | None:
    """A vote, if the line is one."""
    if not isinstance(line, dict):
        return None
    vote_id, prompt_id, winner = line.get("id"), line.get("prompt_id"), line.get("winner")
    left, right = _key(line.get("left")), _key(line.get("right"))
    if left is None or right is None or left == right or winner not in SIDES or not isinstance(prompt_id, str):
        return None
    if not isinstance(vote_id, str) or not re.fullmatch(r"[0-9a-f]{8,64}", vote_id):
        return None
    return Vote(vote_id, prompt_id, left, right, winner)


def _key(value: Any) -> Key | None:
    parts = value if isinstance(value, list) and len(value) == 2 else [None, None]
    named = [part for part in parts if isinstance(part, str) and NAME.fullmatch(part)]
    return (named[0], named[1]) if len(named) == 2 else None
