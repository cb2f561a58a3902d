"""Ternary quantization: after a selection, each kept value is +scale or -scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress import bfloat
from fedcompress.codecs.base import Places, Reader, Writer
from fedcompress.codecs.signs import read_signs, write_signs
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

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Places], seed: int = 0) -> None:
        """Scales of the nonempty vectors, then the signs of all."""
        kept = [v for v in values if v.size]
        means = np.array([np.abs(v).mean(dtype=np.float64) for v in kept], dtype=np.float32)
        writer.raw(bfloat.to_bfloat16(means).astype("<u2").tobytes())
        write_signs(writer, [np.signbit(v) for v in values], places)

    def read(self, reader: Reader, places: Sequence[Places]) -> list[Array]:
        """``scale`` or ``-scale`` for each entry."""
        scales = iter(bfloat.scales_from(reader.raw(2 * sum(p.count > 0 for p in places))))
        out = []
        for negative in read_signs(reader, places):
            scale = next(scales) if negative.size else np.float32(0)
            out.append(np.array([scale, -scale], np.float32)[negative.view(np.uint8)])
        return out
