"""The votes that people save: what a file must hold to count, what is counted, and files that hold anything."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import HOSTILE_TEXTS

from lora_sweep.scoring.intervals import wilson_interval
from sweep.report.analysis.votes import (
    FORMAT,
    MAX_FILE_BYTES,
    Tally,
    Vote,
    count_votes,
    read_votes,
    write_page_votes,
)

Json = dict[str, Any]
A, B, C = ("t000000000001", "e1"), ("t000000000002", "e1"), ("b000000000000", "e1")
A_SEED = ("t000000000011", "e1")  # A again with another seed
KEYS = {"B1": [C], "1": [A, A_SEED], "2": [B]}


def line(number: int = 0, left: Any = A, right: Any = B, winner: Any = "left", **changes: Any) -> Json:
    ids = {"id": f"{number:032x}", "prompt_id": "validation-0"}
    return {**ids, "left": left, "right": right, "winner": winner, "time": "2026-01-02T03:04:05.678Z", **changes}


def write(folder: Path, lines: Any, name: str = "votes-demo-1.json", **changes: Any) -> None:
    (folder / name).write_text(json.dumps({"format": FORMAT, "sweep": "demo", "votes": lines, **changes}))


def test_a_saved_vote_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, [line(7, A, B, "tie")])
    assert read_votes(tmp_path) == ([Vote(f"{7:032x}", "validation-0", A, B, "tie")], [])


def test_a_folder_without_votes_and_no_folder_at_all_have_none(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert read_votes(tmp_path) == ([], [])
    assert read_votes(tmp_path / "none") == ([], [])


def test_votes_saved_twice_count_once(tmp_path: Path) -> None:
    write(tmp_path, [line(1), line(2)], "votes-demo-1.json")
    write(tmp_path, [line(1), line(2), line(3)], "votes-demo-2.json")
    assert len(read_votes(tmp_path)[0]) == 3


def test_the_order_is_that_of_the_files_names(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        write(tmp_path, [line(number)], f"votes-{number}.json")
    assert [vote.vote_id for vote in read_votes(tmp_path)[0]] == [f"{number:032x}" for number in (1, 2, 3)]


def test_wins_losses_and_ties_by_hand() -> None:
    votes = [
        Vote("1", "p", A, B, "left"),  # A
        Vote("2", "p", B, A, "right"),  # A
        Vote("3", "p", B, A_SEED, "left"),  # B
        Vote("4", "p", A, C, "tie"),
        Vote("5", "p", A, A_SEED, "left"),  # two seeds of one configuration: no vote between configurations
        Vote("6", "p", A, ("t999999999999", "e1"), "left"),  # of another sweep
        Vote("7", "p", A, (B[0], "e2"), "left"),  # an evaluation that the sweep no longer has
    ]
    found = count_votes(votes, KEYS)
    assert list(found) == ["B1", "1", "2"]
    assert found["1"] == Tally(2, 1, 1, 2.5 / 4, *wilson_interval(2.5, 4))
    assert found["2"] == Tally(1, 2, 0, 1 / 3, *wilson_interval(1, 3))
    assert found["B1"] == Tally(0, 0, 1, 0.5, *wilson_interval(0.5, 1))
    assert write_page_votes(votes, ["a note"], KEYS) == {
        "count": 4,
        "notes": ["a note"],
        "rows": {"B1": [0, 0, 1], "1": [2, 1, 1], "2": [1, 2, 0]},
    }


def test_without_votes_nobody_has_a_count_votes() -> None:
    assert count_votes([], KEYS) == {}
    assert write_page_votes([], [], KEYS) == {"count": 0, "notes": [], "rows": {}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "no hex at all"},
        {"id": 5},
        {"id": "ab"},
        {"prompt_id": None},
        {"winner": "both"},
        {"winner": ["left"]},
        {"left": [A[0]]},
        {"left": "ab"},
        {"left": ["../../x", "e1"]},
        {"left": [A[0], None]},
        {"left": list(B)},
    ],
)
def test_what_is_no_vote_is_left_out_with_a_note(tmp_path: Path, wrong: Json) -> None:
    write(tmp_path, [line(1, **wrong), line(2)])
    votes, notes = read_votes(tmp_path)
    assert [vote.vote_id for vote in votes] == [f"{2:032x}"]
    assert notes == ["votes-demo-1.json holds 1 vote that cannot be read, left out of 2"]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"format": "lora-sweep vot', "is not JSON"),
        (b"[]", "is not a file of votes"),
        (b'{"format": "lora-sweep votes 2", "votes": []}', "is not a file of votes"),
        (b'{"format": "lora-sweep votes 1", "votes": {"a": 1}}', "is not a file of votes"),
        (b'{"format": ["lora-sweep votes 1"], "votes": NaN}', "is not a file of votes"),
    ],
)
def test_a_broken_file_is_a_note_and_the_others_count(tmp_path: Path, content: bytes, note: str) -> None:
    (tmp_path / "votes-broken.json").write_bytes(content)
    write(tmp_path, [line(1)], "votes-whole.json")
    votes, notes = read_votes(tmp_path)
    assert len(votes) == 1
    assert len(notes) == 1
    assert notes[0].startswith(f"votes-broken.json {note}")


def test_what_is_no_file_is_a_note_and_nothing_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "votes-folder.json").mkdir()
    os.mkfifo(tmp_path / "votes-pipe.json")
    (tmp_path / "votes-loop.json").symlink_to("votes-loop.json")
    with (tmp_path / "votes-huge.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    votes, notes = read_votes(tmp_path)
    assert votes == []
    assert [note.split(" ", 1)[0] for note in notes] == [
        f"votes-{name}.json" for name in ("folder", "huge", "loop", "pipe")
    ]


def test_a_files_name_cannot_do_anything(tmp_path: Path) -> None:
    (tmp_path / "votes\x1b[31m\n.json").write_text("x")
    assert read_votes(tmp_path)[1] == ["votes⟨U+001B⟩[31m\n.json is not JSON"]


@pytest.mark.parametrize("text", HOSTILE_TEXTS[::4])
def test_hostile_words_in_any_place_are_no_vote(tmp_path: Path, text: str) -> None:
    keys = ("id", "left", "right", "winner")
    write(tmp_path, [text, *(line(place, **{key: text}) for place, key in enumerate(keys))], sweep=text)
    votes, notes = read_votes(tmp_path)
    assert votes == []
    assert len(notes) == 1


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["left", "tie", FORMAT, A[0]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(line())), inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON_VALUES, max_size=4))
def test_whatever_a_file_holds_reading_it_ends_in_votes_and_notes(tmp_path: Path, lines: list[Any]) -> None:
    write(tmp_path, lines)
    votes, notes = read_votes(tmp_path)
    assert len(votes) + bool(notes) >= bool(lines)
    assert sum(sum((each.wins, each.losses, each.ties)) for each in count_votes(votes, KEYS).values()) <= 2 * len(lines)
