"""Named places at which a test can kill the process: after a crash at any of them, the same command must go on."""

import os
import signal
from collections import Counter
from pathlib import Path

_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Do nothing; or die here, where the environment says ``LORA_SWEEP_CRASH=name:k:file`` and this is the k-th time.

    ``file`` is made on the way, and while it is there nobody dies: a process that is started again goes on.
    """
    wanted, _, rest = os.environ.get("LORA_SWEEP_CRASH", "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    times, _, file = rest.partition(":")
    if _passed[name] >= int(times) and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
