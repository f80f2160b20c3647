"""How a value is written for people, so that the terminal, the plan, the report's files and its page say the same.

Owns digits, units, plurals, and what happens to a character that would act on a terminal instead of being shown.
Knows nothing of files or of markup.
"""

import unicodedata
from typing import Any

UNKNOWN = "–"
MAX_TEXT_CHARACTERS = 2000  # of one generation, in a report or on a terminal; generations.jsonl holds all of it


# --- text from outside -------------------------------------------------------------------------------------------


def escape_controls(text: str) -> str:
    """``text`` with every control character written out: an escape character becomes ⟨U+001B⟩.

    Newlines and tabs stay, and CR LF becomes a newline. Joiners (U+200C and U+200D) stay, because scripts and emoji
    need them. Half of a surrogate pair, which no encoding can write, becomes U+FFFD.
    """
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else _escape_character(ch) for ch in text.replace("\r\n", "\n"))


def _escape_character(ch: str) -> str:
    if ch in "\n\t\u200c\u200d":
        return ch
    category = unicodedata.category(ch)
    if category == "Cs":
        return "\ufffd"
    if category in ("Cc", "Cf", "Zl", "Zp"):
        return f"⟨U+{ord(ch):04X}⟩"
    return ch


def shorten_text(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """At most ``limit`` characters of ``text``; what follows them is counted in words."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def fit_one_line(text: str, limit: int) -> str:
    """``text`` on one line and without control characters, cut after ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return escape_controls(cut).replace("\n", " ").replace("\t", " ")


# --- numbers -----------------------------------------------------------------------------------------------------


def format_decimals(value: float | int | None, digits: int) -> str:
    """``1,234.50``: ``digits`` of them after the point."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_count(value: float | int | None) -> str:
    """``12,994,560``"""
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_millions(params: float | int) -> str:
    """Three digits of a million: 12,994,560 is 13.0 M."""
    value = params / 1e6
    if value >= 100 or value == 0:
        return f"{value:,.0f} M"
    if value < 0.0001:
        return "<0.0001 M"
    return f"{value:#.3g} M"


def count_noun(amount: int, noun: str) -> str:
    """``1 trial``, ``2 trials``"""
    return f"{amount} {noun}{'s' * (amount != 1)}"


def format_duration(seconds: float) -> str:
    """Seconds as ``40 s``, ``12 min`` or ``3.2 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_clock(seconds: float) -> str:
    """Seconds as ``3:07`` or ``1:03:07``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_bytes(value: float | int | None) -> str:
    """Bytes of memory or of a file as KiB, MiB or GiB."""
    if value is None:
        return UNKNOWN
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if value >= 2**power:
            return f"{value / 2**power:,.2f} {unit}"
    return f"{value / 2**10:,.1f} KiB"


def format_disk_bytes(value: int) -> str:
    """Bytes of a disk as ``340 MB``: in steps of a thousand, as disks are sold."""
    unit, step = next(((unit, step) for unit, step in (("TB", 10**12), ("GB", 10**9)) if value >= step), ("MB", 10**6))
    amount = value / step
    return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"


def format_setting(value: Any) -> str:
    """A hyperparameter: 0.001, not 1e-03; the items of a list with a space between them."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return escape_controls(" ".join(str(item) for item in value))
    return escape_controls(str(value))
