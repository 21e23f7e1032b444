"""Gives memory back to the system after the few moments that take much of it."""

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Frees what ended sessions left, and returns what is free to the system.

    Callbacks and errors tie an ended session into cycles, with all the state that it held; and glibc keeps freed memory in
    the arena of each thread that ever took some, of which every new Kafka client has several. Without this a worker that
    rebuilt several times held gigabytes. Does the first half only where the C library has no `malloc_trim`.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
