"""The number of the present thread: on a CPU two members of a pack train at once, each in a thread with half the cores.

A core that has a forward of its own does not wait for the other one at every small operation: that wait was a quarter
of its time. What belongs to a forward is kept by this number and not by thread: on a GPU autograd computes layers again
in a thread of its own, which must find what the main thread has kept. All threads that are no member thread are 0.
"""

import threading

_present = threading.local()


def get_member_thread() -> int:
    """The number of the present thread: 1 and up for a member thread, 0 for every other thread."""
    return getattr(_present, "number", 0)


def enter_member_thread(number: int) -> None:
    """Make the present thread the member thread ``number``, which is 1 or more."""
    _present.number = number
