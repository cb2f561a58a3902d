"""bfloat16 by bit operations against a slow twin, with every kind of tie."""

from __future__ import annotations

import numpy as np

from fedcompress.numerics import bfloat16
from tests.unit.codecs import codec_reference as reference


def finite_floats() -> np.ndarray:
    """Random bits; ties (low half 0x8000) and their neighbours; the ends."""
    generator = np.random.default_rng(0)
    high = generator.integers(0, 0x7F80, 400, dtype=np.uint32)
    low = np.tile(np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32), 67)[:400]
    bits = np.concatenate([high << 16 | low, np.array([0, 1, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF], np.uint32)])
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


def test_nearest_even() -> None:
    values = finite_floats()
    ours = bfloat16.from_bfloat16(bfloat16.to_bfloat16(values))
    assert ours.tobytes() == np.array([reference.bf16_nearest(float(v)) for v in values], np.float32).tobytes()


def test_round_up() -> None:
    values = np.abs(finite_floats())
    ours = bfloat16.from_bfloat16(bfloat16.round_up(values))
    assert ours.tobytes() == np.array([reference.bf16_up(float(v)) for v in values], np.float32).tobytes()
    below_the_end = values <= bfloat16.from_bfloat16(np.array([bfloat16.MAX_BITS], np.uint16))[0]
    assert (ours >= values)[below_the_end].all()
