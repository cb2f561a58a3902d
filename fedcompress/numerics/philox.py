"""Draws random bits that are equal on every machine: Philox, keyed by a seed and a label."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def hash_seed(*items: object) -> int:
    """Derive a seed, from 0 to 2^63 - 1, from the texts of some items: the same on every machine."""
    text = "/".join(map(str, items))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def words(seed: int, label: str, count: int, start: int = 0) -> NDArray[np.uint32]:
    """Draw words of 32 random bits from Philox4x64-10, low halves of its 64-bit words first.

    The key is the first 16 bytes, little-endian, of the SHA-256 of the text ``seed/label``. The generator is
    counter-based, so that words in the middle cost no words before them.

    Args:
        seed: any nonnegative integer.
        label: what the words are for; each label has a stream of its own.
        count: the number of words.
        start: the number of the first word in the stream, from 0.

    Returns:
        Words, uint32, shape (count,).
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:16], "little")
    steps, skip = divmod(start, 8)  # one step of the counter gives eight words
    generator = np.random.Philox(key=key)
    if steps:
        generator.advance(steps)
    raw = generator.random_raw((skip + count + 1) // 2)
    return np.atleast_1d(raw).astype("<u8").view("<u4")[skip : skip + count].astype(np.uint32, copy=False)


def uniform(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """Draw uniform multiples of 2^-24 in [0, 1).

    Args:
        seed: as for ``words``.
        label: as for ``words``.
        count: the number of values.

    Returns:
        Values, float32, shape (count,).
    """
    return (words(seed, label, count) >> 8).astype(np.float32) * np.float32(2**-24)


def signs(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """Draw Rademacher signs: +1 for a bit of 0 and -1 for a bit of 1, least significant bit of each word first.

    Args:
        seed: as for ``words``.
        label: as for ``words``.
        count: the number of signs.

    Returns:
        Signs, float32, shape (count,).
    """
    bits = np.unpackbits(words(seed, label, (count + 31) // 32).astype("<u4").view(np.uint8), bitorder="little")
    return np.float32(1) - np.float32(2) * bits[:count].astype(np.float32)
