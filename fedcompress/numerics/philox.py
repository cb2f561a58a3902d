"""Random bits that every machine draws alike: Philox, keyed by a seed and a label."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def words(seed: int, label: str, count: int, start: int = 0) -> NDArray[np.uint32]:
    """``count`` words of 32 bits of Philox4x64-10, low halves first, from the ``start``-th on.

    The key is the first 16 bytes of SHA-256 of ``seed/label``, little-endian. The generator counts, so that
    words in the middle cost no words before them.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:16], "little")
    steps, skip = divmod(start, 8)  # one step of the counter gives eight words
    generator = np.random.Philox(key=key)
    if steps:
        generator.advance(steps)
    raw = generator.random_raw((skip + count + 1) // 2)
    return np.atleast_1d(raw).astype("<u8").view("<u4")[skip : skip + count].astype(np.uint32, copy=False)


def uniform(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """Multiples of 2^-24 in [0, 1)."""
    return (words(seed, label, count) >> 8).astype(np.float32) * np.float32(2**-24)


def signs(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """Rademacher: +1 or -1 from one bit each, least significant first."""
    bits = np.unpackbits(words(seed, label, (count + 31) // 32).astype("<u4").view(np.uint8), bitorder="little")
    return np.float32(1) - np.float32(2) * bits[:count].astype(np.float32)
