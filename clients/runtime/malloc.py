"""glibc's allocator is set so that free memory goes back to the machine: a site's processes idle between rounds.

Where there is no glibc these functions do nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD = -1  # numbers of options of mallopt(3), from malloc.h
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
MAPPED = 1 << 20  # bytes of the smallest block that return_large_blocks maps by itself
# options of keep_until_trimmed: one heap, which grows by large steps, for all blocks up to glibc's largest threshold
KEPT = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 512 << 20, M_TOP_PAD: 32 << 20}


def return_large_blocks() -> None:
    """Give back to the system, from now on, blocks of ``MAPPED`` bytes and more as soon as they are freed.

    glibc raises that size to 32 MiB by itself, and keeps what is smaller in a heap that only shrinks from its end:
    activations and copies of a state then stay for ever. ``MALLOC_MMAP_THRESHOLD_``, if it is set, is kept.
    """
    _set({M_MMAP_THRESHOLD: MAPPED})


def keep_until_trimmed() -> None:
    """Keep blocks that are freed, from now on, in the heap until ``release_memory``.

    A codec makes and drops arrays of a few MiB many times; where each is mapped anew, half of its time goes to
    pages that the kernel clears. ``MALLOC_MMAP_THRESHOLD_``, if it is set, is kept.
    """
    _set(KEPT)


def _set(options: Mapping[int, int]) -> None:
    """Set options of mallopt(3), unless the environment sets the threshold of mapping."""
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        call = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if call is not None:
            for key, value in options.items():
                call(key, value)


def release_memory() -> None:
    """Give back to the machine what the heap holds and nobody uses."""
    if sys.platform == "linux":
        call = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if call is not None:
            call(0)
