"""The error tree, and the exit codes of every command.

    SweepError
    ├── Refused     wrong input, found before any weight is loaded    exit 78
    ├── Diverged    a loss or gradient stopped being a finite number  the trial's status
    ├── Preempted   a signal asked to stop: what is done is saved     the trial goes on later
    └── PackFailed  the common work of a pack failed                  each trial of it runs again, alone

Anything else that a trial raises is caught by the worker and becomes that trial's status and reason.
"""

import difflib
from collections.abc import Iterable

EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command goes on from here
EXIT_REFUSED = 78  # EX_CONFIG


class SweepError(Exception):
    """Root of everything that lora-sweep raises on purpose."""


class Refused(SweepError):
    """Input that cannot work, in one sentence: where, what, what is allowed, and the nearest right spelling."""

    def __init__(self, where: str, what: str, allowed: Iterable[str] = (), word: str | None = None) -> None:
        names = [str(name) for name in allowed]
        near = nearest(word, names) if word is not None else None
        parts = [f"{where}: {what}" if where else what]
        if near:
            parts.append(f"did you mean {near!r}?")
        if names:
            parts.append("allowed: " + ", ".join(names))
        super().__init__("; ".join(parts))


class Diverged(SweepError):
    """A loss or gradient norm that is not finite. The message names the step."""


class Preempted(SweepError):
    """A trial stopped because a signal asked for it. The message says where it will go on."""


class PackFailed(SweepError):
    """The common work of a pack failed. No member is known to be the cause, so each runs again, alone."""


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed spelling closest to ``word``, or None when nothing is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return close[0] if close else None
