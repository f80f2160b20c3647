"""Names of runs: labels with zeros before their numbers, because trackers sort names as text."""

import re
from decimal import Decimal

NUMBER = re.compile(r"(?P<before>\w+=)?(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)(?P<after>bit)?")
MAX_DIGITS = 12  # a number with more digits is not padded


def name_run(label: str, labels: list[str]) -> str:
    """``label`` with its numbers padded to the widest of ``labels``: ``r=8 attn 4bit`` becomes ``r=08 attn 04bit``.

    The widest is found for each key, such as ``r=``; 1e-05 becomes 0.00001.
    """
    widths: dict[tuple[str, str], int] = {}
    for word in " ".join([label, *labels]).split():
        parts = split_number(word)
        if parts:
            before, number, after = parts
            widths[before, after] = max(widths.get((before, after), 0), count_whole_digits(number))
    return " ".join(pad_number(word, widths) for word in label.split(" "))


def pad_number(word: str, widths: dict[tuple[str, str], int]) -> str:
    """The word with zeros before its number; ``widths`` holds the digits of the widest number of each key."""
    parts = split_number(word)
    if parts is None:
        return word
    before, number, after = parts
    return f"{before}{'0' * (widths[before, after] - count_whole_digits(number))}{number}{after}"


def count_whole_digits(number: str) -> int:
    """The digits before the decimal point."""
    return len(number.partition(".")[0])


def split_number(word: str) -> tuple[str, str, str] | None:
    """A word as (key, number, unit): ``lr=1e-05`` is ``lr=``, ``0.00001`` and ``""``.

    None for a word that holds no number, for a number alone, and for one of more than MAX_DIGITS digits.
    """
    match = NUMBER.fullmatch(word)
    if match is None or not (match["before"] or match["after"]):
        return None
    number, value = match["number"], Decimal(match["number"])
    if not -MAX_DIGITS <= value.adjusted() < MAX_DIGITS:
        return None
    return match["before"] or "", f"{value:f}" if "e" in number else number, match["after"] or ""
