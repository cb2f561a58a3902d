"""Memory that is free goes back to the machine: a site's processes idle between rounds, beside others."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
MAPPED = 1 << 20  # bytes
# One heap, from which all up to the largest size that glibc allows is taken, and which grows by large steps.
KEPT = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 512 << 20, M_TOP_PAD: 32 << 20}


def return_large_blocks() -> None:
    """From now on blocks of ``MAPPED`` bytes and more are unmapped as soon as they are freed.

    glibc raises that size to 32 MiB by itself, and keeps what is smaller in a heap that only shrinks from its end:
    activations and copies of a state then stay for ever. ``MALLOC_MMAP_THRESHOLD_``, if it is set, is kept.
    """
    _set({M_MMAP_THRESHOLD: MAPPED})


def keep_until_trimmed() -> None:
    """From now on blocks that are freed stay in the heap until ``trim``.

    A code makes and drops arrays of a few MiB many times; where each is mapped anew, half of its time goes to
    pages that the kernel clears. ``MALLOC_MMAP_THRESHOLD_``, if it is set, is kept.
    """
    _set(KEPT)


def _set(options: Mapping[int, int]) -> None:
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        call = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if call is not None:
            for key, value in options.items():
                call(key, value)


def trim() -> None:
    """Give back what the heap holds and nobody uses."""
    if sys.platform == "linux":
        call = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if call is not None:
            call(0)
