"""bfloat16 as uint16, by bit operations: equal on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import PayloadError
from fedcompress.types import Array

MAX_BITS = 0x7F7F  # largest finite bfloat16, 3.39e38


def to_bfloat16(values: Array) -> NDArray[np.uint16]:
    """Round finite float32 to nearest even; values beyond the range become its ends."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    out = rounded.astype(np.uint16)
    overflow = (out & 0x7FFF) > MAX_BITS
    return np.where(overflow, (out & 0x8000) | MAX_BITS, out).astype(np.uint16)


def round_up(values: Array) -> NDArray[np.uint16]:
    """Smallest bfloat16 that is >= each nonnegative finite float32, at most the largest."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = np.minimum((bits + np.uint32(0xFFFF)) >> 16, MAX_BITS).astype(np.uint16)
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> Array:
    """Exact widening to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def scales_from(data: bytes) -> Array:
    """Scales from little-endian bfloat16 bytes.

    Raises:
        PayloadError: a scale is negative, NaN or infinite.
    """
    scales = from_bfloat16(np.frombuffer(data, "<u2").astype(np.uint16))
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise PayloadError("section: scale: must be finite and >= 0")
    return scales
