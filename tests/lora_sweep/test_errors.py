"""errors: the one sentence that a refusal is, and the spelling it proposes."""

import pytest

from lora_sweep.errors import (
    EXIT_COMPLETE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    Diverged,
    Refused,
    SweepError,
    describe_error,
    find_nearest,
)


def test_a_refusal_says_where_what_the_nearest_and_what_is_allowed() -> None:
    error = Refused("lora.bias = al", "is unknown", ("none", "all", "lora_only"), "al")
    assert str(error) == "lora.bias = al: is unknown; did you mean 'all'?; allowed: none, all, lora_only"


def test_parts_that_are_not_known_are_left_out() -> None:
    assert str(Refused("seed = -1", "must be at least 0")) == "seed = -1: must be at least 0"
    assert str(Refused("", "a sentence that is whole already")) == "a sentence that is whole already"
    assert str(Refused("x", "is unknown", ["a", "b"])) == "x: is unknown; allowed: a, b"
    assert str(Refused("x", "is unknown", ["none", "all"], "8bit")) == "x: is unknown; allowed: none, all"


def test_an_error_is_described_by_its_type_and_its_first_line() -> None:
    assert describe_error(ValueError("\nfirst\nsecond")) == "ValueError: first"
    assert describe_error(OSError()) == "OSError"  # a message may be empty
    assert len(describe_error(OSError("x" * 1000))) == len("OSError: ") + 300


def test_names_may_come_from_a_generator() -> None:
    error = Refused("x", "is unknown", (name for name in ("q_proj", "v_proj")), "q_porj")
    assert str(error) == "x: is unknown; did you mean 'q_proj'?; allowed: q_proj, v_proj"


@pytest.mark.parametrize(
    ("word", "found"),
    [("q_prj", "q_proj"), ("qproj", "q_proj"), ("upproj", "up_proj"), ("zzz", None), ("", None)],
)
def test_nearest_finds_what_is_close_and_nothing_else(word: str, found: str | None) -> None:
    assert find_nearest(word, ["q_proj", "k_proj", "up_proj"]) == found


def test_everything_raised_on_purpose_has_one_root() -> None:
    assert issubclass(Refused, SweepError)
    assert issubclass(Diverged, SweepError)
    assert not issubclass(Diverged, Refused)  # one ends the command, the other a trial


def test_the_exit_codes_are_those_of_sysexits() -> None:
    assert (EXIT_COMPLETE, EXIT_FAILED) == (0, 1)
    assert (EXIT_INTERRUPTED, EXIT_REFUSED) == (75, 78)  # EX_TEMPFAIL and EX_CONFIG of sysexits.h
