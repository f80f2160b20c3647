"""Turns an exception into the failure of a trial, which is a value. A full disk is no trial's failure."""

import traceback
from collections.abc import Callable
from typing import TypeVar

from lora_sweep.errors import Diverged, Preempted
from lora_sweep.messages import Failure, Reporter
from lora_sweep.runs import files

MAX_REASON_CHARACTERS = 2000
DISK_MESSAGES = ("No space left on device", "Read-only file system", "Disk quota exceeded", "Input/output error")
Value = TypeVar("Value")


def attempt_step(
    step: Callable[[], Value], reporter: Reporter, is_out_of_memory: Callable[[BaseException], bool]
) -> Value | Failure:
    """Run a step of one trial; an exception becomes its failure, with the traceback in the trial's log.

    Raises:
        Exception: the disk cannot be written (see :func:`is_disk_error`).
    """
    with reporter.capture_output():
        try:
            return step()
        except Exception as error:
            if is_disk_error(error):
                raise
            return describe_failure(error, is_out_of_memory)


def describe_failure(error: Exception, is_out_of_memory: Callable[[BaseException], bool]) -> Failure:
    """The status and the reason of an exception. Prints the traceback unless it is Preempted or Diverged."""
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, Preempted):
        return Failure("preempted", reason)
    if isinstance(error, Diverged):
        return Failure("diverged", reason)
    traceback.print_exception(error)
    status = "oom" if is_out_of_memory(error) else "failed"
    return Failure(status, f"{type(error).__name__}: {reason}"[:MAX_REASON_CHARACTERS])


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk is full, gone or read-only. Libraries wrap the system's message into their own errors."""
    if isinstance(error, OSError) and error.errno in files.DISK_ERRORS:
        return True
    return any(message in str(error) for message in DISK_MESSAGES)
