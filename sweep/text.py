"""How values are written for people, so that the terminal, the plan, the report's files and its page agree.

This module decides digits, units and plurals, and how control characters are shown. It uses no files and no markup.
"""

import unicodedata
from typing import Any

UNKNOWN = "–"
MAX_TEXT_CHARACTERS = 2000  # of one generation in a report or on a terminal; generations.jsonl has the whole text


# --- text from outside -------------------------------------------------------------------------------------------


def escape_controls(text: str) -> str:
    """``text`` with every control character replaced by its code point in brackets: ESC becomes ⟨U+001B⟩.

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
    """At most ``limit`` characters of ``text``, and how many more characters there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def fit_one_line(text: str, limit: int) -> str:
    """``text`` on one line, without control characters. A text of more than ``limit`` characters ends in ``…``."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return escape_controls(cut).replace("\n", " ").replace("\t", " ")


# --- numbers -----------------------------------------------------------------------------------------------------


def format_decimals(value: float | int | None, digits: int) -> str:
    """A number with ``digits`` digits after the point, as ``1,234.50``."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_count(value: float | int | None) -> str:
    """A whole number, as ``12,994,560``."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_millions(params: float | int) -> str:
    """Millions with three digits: 12,994,560 is ``13.0 M``."""
    value = params / 1e6
    if value >= 100 or value == 0:
        return f"{value:,.0f} M"
    if value < 0.0001:
        return "<0.0001 M"
    return f"{value:#.3g} M"


def count_noun(amount: int, noun: str) -> str:
    """A number with its noun in singular or plural, as ``1 trial`` or ``2 trials``."""
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
    """Bytes of memory or of a file in KiB, MiB or GiB."""
    if value is None:
        return UNKNOWN
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if value >= 2**power:
            return f"{value / 2**power:,.2f} {unit}"
    return f"{value / 2**10:,.1f} KiB"


def format_disk_bytes(value: int) -> str:
    """Bytes of a disk as ``340 MB``. These units are powers of 1000, as on the label of a disk."""
    unit, step = next(((unit, step) for unit, step in (("TB", 10**12), ("GB", 10**9)) if value >= step), ("MB", 10**6))
    amount = value / step
    return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"


def format_setting(value: Any) -> str:
    """The value of a hyperparameter: 0.001 instead of 1e-03, and the items of a list with a space between them."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return escape_controls(" ".join(str(item) for item in value))
    return escape_controls(str(value))
