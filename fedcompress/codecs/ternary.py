"""Ternary quantization: after a selection, each kept value is +scale or -scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress import bfloat
from fedcompress.codecs.base import Reader, Writer
from fedcompress.codecs.entropy import pack_bits, unpack_bits
from fedcompress.errors import ConfigError
from fedcompress.types import Array

SCALES = ("mse",)


@dataclass(frozen=True, kw_only=True)
class Ternary:
    """Signs, one bit each, and one bfloat16 scale for each tensor with kept values.

    ``scale="mse"`` is the mean magnitude of the kept values: for given signs it has the
    least squared error (sparse ternary compression, arXiv:1903.02891, algorithm 1).
    The code released with ComPEFT takes the signed mean in its STC baseline, which is
    near zero for symmetric values; the paper's rule is followed here.
    """

    name: ClassVar[str] = "ternary"
    scale: str = "mse"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError("codec.ternary.scale", self.scale, f"one of {list(SCALES)}")

    def write(self, writer: Writer, values: Sequence[Array]) -> None:
        """Scales of the nonempty vectors, then the sign bits of all (1 is negative)."""
        kept = [v for v in values if v.size]
        means = np.array([np.abs(v, dtype=np.float64).mean() for v in kept], dtype=np.float32)
        writer.raw(bfloat.to_bfloat16(means).astype("<u2").tobytes())
        signs = np.concatenate([np.signbit(v) for v in kept]) if kept else np.zeros(0, np.bool_)
        writer.raw(pack_bits(signs.astype(np.int32), 1))

    def read(self, reader: Reader, sizes: Sequence[int]) -> list[Array]:
        """``scale`` or ``-scale`` for each entry."""
        scales = iter(bfloat.scales_from(reader.raw(2 * sum(n > 0 for n in sizes))))
        total = sum(sizes)
        negative = unpack_bits(reader.raw((total + 7) // 8), total, 1).astype(np.bool_)
        out, at = [], 0
        for size in sizes:
            scale = next(scales) if size else np.float32(0)
            out.append(np.where(negative[at : at + size], -scale, scale).astype(np.float32))
            at += size
        return out
