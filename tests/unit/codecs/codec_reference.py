"""What the codecs decode to, one float at a time. Slow and obvious."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence


def bf16_nearest(value: float) -> float:
    """Round a float32 to nearest even bfloat16, clamped to the finite range."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    low, high = bits & 0xFFFF, bits >> 16
    if low > 0x8000 or (low == 0x8000 and high & 1):
        high += 1
    if high & 0x7FFF > 0x7F7F:
        high = (high & 0x8000) | 0x7F7F
    return float(struct.unpack("<f", struct.pack("<I", high << 16))[0])


def f32(value: float) -> float:
    """Round to float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def topk(values: Sequence[float], density: float) -> list[bool]:
    """Mask of the largest magnitudes; on ties the lower index wins."""
    count = math.ceil(density * len(values))
    ranked = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(ranked[:count])
    return [i in kept for i in range(len(values))]


def ternary(values: Sequence[float], mask: Sequence[bool]) -> list[float]:
    """Sign times the mean magnitude of what is kept."""
    kept = [abs(v) for v, m in zip(values, mask, strict=True) if m]
    scale = bf16_nearest(f32(math.fsum(kept) / len(kept))) if kept else 0.0
    return [math.copysign(scale, v) if m else 0.0 for v, m in zip(values, mask, strict=True)]
