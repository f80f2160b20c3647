"""The real commands in the process of the test: a start of Python and its imports would be most of their time."""

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hydra.core.global_hydra import GlobalHydra

from sweep.plan.facts import ask_inspect

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def run_command(module: str, *arguments: str, folder: Path | None = None) -> Finished:
    """``python -m MODULE ARGUMENTS`` without a new process; signals, argv, environment and folder are put back.

    Args:
        module: one with a ``main``, as ``lora_sweep.train`` or ``sweep.plan.__main__``.
        folder: the working folder.
    """
    main = importlib.import_module(module).main
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [module, *arguments]))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(contextlib.chdir(folder or Path.cwd()))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            code = main() or 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        finally:
            GlobalHydra.instance().clear()
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Finished(code, out.getvalue(), err.getvalue())


ask_inspect_in_a_child = ask_inspect  # as it is before conftest.py replaces it by the next function


def ask_inspect_here(requests: list[Any], strict: bool) -> list[Any]:
    """In place of ``sweep.plan.facts.ask_inspect``: the planner's child process, without the process."""
    from lora_sweep.model import inspect

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        asked, answered = Path(folder) / "requests.json", Path(folder) / "answers.json"
        asked.write_text(json.dumps(requests))
        with (
            mock.patch.object(sys, "argv", ["inspect", str(asked), str(answered)]),
            mock.patch.object(inspect, "gc"),  # what it does there is for a process that ends with it
        ):
            inspect.main()
        answers: list[Any] = json.loads(answered.read_text())
    return answers
