"""A script under a pseudo terminal, and what a terminal shows of the bytes that it wrote."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Terminal:
    """What a terminal shows of the bytes it gets: enough of one for what rich writes, and no more."""

    def __init__(self, height: int = 24, width: int = 80) -> None:
        self.height, self.width, self.lines = height, width, [""]
        self.row, self.column, self.cursor_shown = 0, 0, True

    def feed(self, text: str) -> "Terminal":
        for code, what in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|([^\x1b])", text):
            if code:
                self.obey(code)
            else:
                self.put(what)
        return self

    def obey(self, code: str) -> None:
        if code in ("?25h", "?25l"):
            self.cursor_shown = code == "?25h"
        elif code == "2K":
            self.lines[self.row] = ""
        elif code == "1A":
            self.row = max(0, len(self.lines) - self.height, self.row - 1)  # what scrolled off is out of reach
        else:
            assert code.endswith("m"), f"not a terminal for {code!r}"

    def put(self, what: str) -> None:
        if what == "\r":
            self.column = 0
            return
        if what == "\n" or self.column == self.width:
            self.row += 1
            self.column = 0
            self.lines += [""] * (self.row == len(self.lines))
        if what != "\n":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + what + line[self.column + 1 :]
            self.column += 1

    def text(self) -> list[str]:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n").split("\n")


def in_a_terminal(
    script: str, size: tuple[int, int] = (24, 80), press: bytes = b"", hang_up: bool = False, **variables: str
) -> tuple[int, str]:
    """Run a script under a pseudo terminal of (lines, columns); its exit code and the bytes that it wrote.

    ``press`` is typed, or the terminal hung up, when the script has said "ready".
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **variables}
    own_it = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" if press else ""
    command = [sys.executable, "-c", own_it + script]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, env=environment, start_new_session=True, **streams) as process:
        os.close(theirs)
        written, until = b"", time.monotonic() + 60
        while time.monotonic() < until:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                written += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if b"ready" in written and hang_up:
                break
            if b"ready" in written and press:
                os.write(ours, press)
                press = b""
        os.close(ours)
        try:
            return process.wait(30), written.decode(errors="replace")
        finally:
            process.kill()
