"""Converts float32 to bfloat16 and back by bit operations, equal on every machine.

numpy has no bfloat16, so that its bits are held as uint16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import PayloadError
from fedcompress.types import Array

MAX_BITS = 0x7F7F  # bits of the largest finite bfloat16, 3.39e38


def to_bfloat16(values: Array) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even; values beyond its range become its ends.

    The result holds the bits, of the same shape.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    out = rounded.astype(np.uint16)
    overflow = (out & 0x7FFF) > MAX_BITS
    return np.where(overflow, (out & 0x8000) | MAX_BITS, out).astype(np.uint16)


def round_up(values: Array) -> NDArray[np.uint16]:
    """Round nonnegative finite float32 up to bfloat16, but never beyond its largest finite value."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = np.minimum((bits + np.uint32(0xFFFF)) >> 16, MAX_BITS).astype(np.uint16)
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> Array:
    """Widen bfloat16 bits to float32, which is exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def decode_scales(data: bytes) -> Array:
    """Decode little-endian bfloat16 scales to float32, shape (len(data) / 2,).

    Raises:
        PayloadError: a scale is negative, NaN or infinite.
    """
    scales = from_bfloat16(np.frombuffer(data, "<u2").astype(np.uint16))
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise PayloadError("section: scale: must be finite and >= 0")
    return scales
