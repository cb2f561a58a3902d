"""Random bits that every machine draws alike: Philox, keyed by a seed and a label."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Reader, Writer

MAX_SEED = (1 << 63) - 1


def words(seed: int, label: str, count: int) -> NDArray[np.uint32]:
    """``count`` words of 32 bits of Philox4x64-10, low halves first.

    The key is the first 16 bytes of SHA-256 of ``seed/label``, little-endian.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw((count + 1) // 2)
    return np.atleast_1d(raw).astype("<u8").view("<u4")[:count].astype(np.uint32, copy=False)


def uniform(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """Multiples of 2^-24 in [0, 1)."""
    return (words(seed, label, count) >> 8).astype(np.float32) * np.float32(2**-24)


def signs(seed: int, label: str, count: int) -> NDArray[np.float32]:
    """Rademacher: +1 or -1 from one bit each, least significant first."""
    bits = np.unpackbits(words(seed, label, (count + 31) // 32).astype("<u4").view(np.uint8), bitorder="little")
    return np.float32(1) - np.float32(2) * bits[:count].astype(np.float32)


def write_seed(writer: Writer, seed: int) -> None:
    """Append a seed."""
    writer.varint(seed)


def read_seed(reader: Reader) -> int:
    """The next seed; a varint is below 2^63 already."""
    return reader.varint()
