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
    count = max(math.ceil(round(density * len(values), 6)), min(len(values), 1))
    ranked = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(ranked[:count])
    return [i in kept for i in range(len(values))]


def ternary(values: Sequence[float], mask: Sequence[bool]) -> list[float]:
    """Sign times the mean magnitude of what is kept."""
    kept = [abs(v) for v, m in zip(values, mask, strict=True) if m]
    scale = bf16_nearest(f32(math.fsum(kept) / len(kept))) if kept else 0.0
    return [math.copysign(scale, v) if m else 0.0 for v, m in zip(values, mask, strict=True)]


def topk_global(tensors: Sequence[Sequence[float]], density: float) -> list[list[bool]]:
    """One mask a tensor, counted over all of them."""
    flat = topk([v for values in tensors for v in values], density)
    ends = [sum(map(len, tensors[: i + 1])) for i in range(len(tensors))]
    return [flat[end - len(values) : end] for end, values in zip(ends, tensors, strict=True)]


def bf16_up(value: float) -> float:
    """Smallest finite bfloat16 >= a nonnegative float32, or the largest there is."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    high = min((bits + 0xFFFF) >> 16, 0x7F7F)
    return float(struct.unpack("<f", struct.pack("<I", high << 16))[0])


def integer(values: Sequence[float], bits: int, block: int = 0) -> list[float]:
    """Multiples of each block's scale; Python's round is to nearest even, as rint."""
    top, out = 2 ** (bits - 1) - 1, []
    step = block or max(len(values), 1)
    for at in range(0, len(values), step):
        part = values[at : at + step]
        scale = bf16_up(f32(max(map(abs, part)) / top))
        if scale * top > struct.unpack("<f", struct.pack("<I", 0x7F7FFFFF))[0]:
            (raw,) = struct.unpack("<I", struct.pack("<f", scale))
            (scale,) = struct.unpack("<f", struct.pack("<I", raw - 0x10000))
        for value in part:
            multiple = max(-top, min(top, round(f32(value / scale)))) if scale else 0
            out.append(f32(multiple * scale))
    return out
