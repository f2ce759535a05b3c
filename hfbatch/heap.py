"""The C library's heap, told to keep what it has.

The activations of a batch are tens of megabytes, which glibc gives back to the system after every use, most of all in
a thread that is not the first, as Ray's are. Fresh pages come zeroed, one fault each: measured, 33,000 of them and an
eighth of a second for a forward of half a second.
"""

from __future__ import annotations

import ctypes

# of malloc.h, with what they are set to: one arena for all threads; never mmap, never trim (a gigabyte and more)
_SETTINGS = {-8: 1, -3: 1 << 30, -1: (1 << 31) - 1}


def keep() -> bool:
    """For the rest of this process. False where the C library has no such settings (musl, macOS)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    taken = [mallopt(name, value) for name, value in _SETTINGS.items()]
    return all(taken)
