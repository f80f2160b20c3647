"""Count the signals that ask a sweep to stop, and wake up the loop that waits for events."""

import os
import signal
import socket
import sys
from types import FrameType, TracebackType
from typing import Any

from lora_sweep.errors import EXIT_INTERRUPTED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
MAX_STOP_SIGNALS = 3  # the third one ends this process at once; its workers then end too
SHOW_CURSOR = b"\x1b[?25h"


class StopSignals:
    """Counts stop signals inside its ``with`` block.

    Attributes:
        count: how many signals came.
        reader: a socket that becomes readable when a signal comes, so that a selector that waits wakes up.
    """

    def __init__(self) -> None:
        self.count = 0
        self.reader, self._writer = socket.socketpair()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._handlers = {number: signal.signal(number, self._count_signal) for number in STOP_SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.reader.close()
        self._writer.close()

    def clear_wakeup(self) -> None:
        """Make ``reader`` unreadable again."""
        self.reader.recv(64)

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count >= MAX_STOP_SIGNALS:
            if sys.stdout.isatty():
                os.write(1, SHOW_CURSOR)  # the live table hides it
            os._exit(EXIT_INTERRUPTED)
