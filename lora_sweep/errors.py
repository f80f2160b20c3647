"""The error tree, and the exit codes of every command.

    SweepError
    ├── Refused     wrong input, found before any weight is loaded    exit code 78
    ├── Diverged    a loss or a gradient is not a finite number       the trial's status is ``diverged``
    ├── Preempted   a signal asked to stop, and progress was saved    the trial resumes later
    └── PackFailed  the common work of a pack failed                  each of its trials runs again, alone

The worker catches every other exception of a trial and turns it into the trial's status and reason.
"""

import difflib
from collections.abc import Iterable

EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command resumes
EXIT_REFUSED = 78  # EX_CONFIG


class SweepError(Exception):
    """The base class of all errors that lora-sweep raises on purpose."""


class Refused(SweepError):
    """Input that cannot work. The message is one sentence: where, what, the nearest correct spelling, what is allowed.

    Args:
        where: the key, file or argument.
        problem: what is wrong with it.
        allowed: the allowed words.
        word: the wrong word, where a similar allowed word is worth naming.
    """

    def __init__(self, where: str, problem: str, allowed: Iterable[str] = (), word: str | None = None) -> None:
        names = [str(name) for name in allowed]
        near = find_nearest(word, names) if word is not None else None
        parts = [f"{where}: {problem}" if where else problem]
        if near:
            parts.append(f"did you mean {near!r}?")
        if names:
            parts.append("allowed: " + ", ".join(names))
        super().__init__("; ".join(parts))


class Diverged(SweepError):
    """A loss or gradient norm that is not finite. The message names the step."""


class Preempted(SweepError):
    """A trial stopped because a signal asked for it. The message says where it will resume."""


class PackFailed(SweepError):
    """The common work of a pack failed. No member is known to be the cause, so each runs again, alone."""


def find_nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that is most similar to ``word``; None when none is similar."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return close[0] if close else None


def describe_error(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
