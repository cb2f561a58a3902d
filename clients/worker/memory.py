"""Memory that is free goes back to the machine: a site's processes idle between rounds, beside others."""

from __future__ import annotations

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3  # of mallopt(3)
MAPPED = 1 << 20  # bytes


def return_large_blocks() -> None:
    """From now on blocks of ``MAPPED`` bytes and more are unmapped as soon as they are freed.

    glibc raises that size to 32 MiB by itself, and keeps what is smaller in a heap that only shrinks from its end:
    activations and copies of a state then stay for ever. ``MALLOC_MMAP_THRESHOLD_``, if it is set, is kept.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        call = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if call is not None:
            call(M_MMAP_THRESHOLD, MAPPED)


def trim() -> None:
    """Give back what the heap holds and nobody uses."""
    if sys.platform == "linux":
        call = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if call is not None:
            call(0)
