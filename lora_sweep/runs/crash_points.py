"""Named points at which a test can kill the process. After a crash at any of them the same command must resume."""

import os
import signal
from collections import Counter
from pathlib import Path

_times_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kill this process if ``LORA_SWEEP_CRASH=name:k:file`` is in the environment and it passes here for the k-th time.

    ``file`` is created just before, and no process dies while it exists: so a process that is started again survives.
    """
    target, _, rest = os.environ.get("LORA_SWEEP_CRASH", "").partition(":")
    if target != name:
        return
    _times_passed[name] += 1
    times, _, file = rest.partition(":")
    if _times_passed[name] >= int(times) and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
