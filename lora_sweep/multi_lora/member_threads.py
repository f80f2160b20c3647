"""Which lane a thread is: on a CPU some members of a pack train beside each other, each in a thread of its own.

What belongs to a forward is kept by lane. All other threads are one lane, 0: on a GPU autograd computes layers again in
a thread of its own, which has to find what the main thread has left.
"""

import threading

_own = threading.local()


def get_member_thread() -> int:
    """The present thread's."""
    return getattr(_own, "number", 0)


def enter_member_thread(number: int) -> None:
    """Make the present thread a lane, from 1 on."""
    _own.number = number
