"""Makes the start of a run from a seed, so that no bytes are needed to send it."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from fedcompress.types import Array, Layout, Tensors


def seeded_init(layout: Layout, seed: int) -> Tensors:
    """Initialize LoRA's A at random and everything else to zero, bit by bit the same on every machine.

    A is uniform within ``1/sqrt(columns)``, as Kaiming's rule with ``a=sqrt(5)`` gives in PEFT (He et al. 2015,
    arXiv:1502.01852); B and new heads start at zero, so that the adapted model is the base model. Values come from
    24 Philox bits each, by exact conversions and one rounded multiplication.

    Args:
        layout: names, shapes and groups; tensors of the group ``lora_a`` are drawn.
        seed: 64 bits, shared by all sites of a run.

    Returns:
        Float32 values by name.
    """
    return {
        t.name: _draw_uniform(t.name, t.shape, seed) if t.group == "lora_a" else np.zeros(t.shape, np.float32)
        for t in layout.tensors
    }


def _draw_uniform(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Draw float32 values within ``1/sqrt(columns)``; each name of a tensor has a stream of its own."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(math.prod(shape))
    centred = (bits >> np.uint64(40)).astype(np.int64) * 2 - ((1 << 24) - 1)  # odd, |.| < 2^24
    columns = shape[-1] if shape else 1
    bound = np.float32(1 / math.sqrt(max(columns, 1)) / (1 << 24))
    return (centred.astype(np.float32) * bound).reshape(shape)
