"""Quantizes to three values: what a selector keeps becomes +scale or -scale, all else is 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.signs import read_signs, write_signs
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array

SCALES = ("mse",)
UNITS = ("tensor", "row")


@dataclass(frozen=True, kw_only=True)
class Ternary:
    """Writes signs, and one bfloat16 scale for each tensor, or each matrix row, that has entries to send.

    ``scale="mse"`` is the mean magnitude of the entries that are sent; for given signs it has the least squared
    error (sparse ternary compression, Sattler et al. 2019, arXiv:1903.02891, algorithm 1). The code released with
    ComPEFT takes the signed mean in its STC baseline, which is near zero for symmetric values; here the paper's rule
    is followed.

    Args:
        scale: the rule for the scale, one of ``SCALES``.
        gain: multiplies the scale, from 0.01 to 100; other than 1 where the scale was calibrated by a model's output
            (``codecs.calibrate``).
        by: what has a scale of its own: ``tensor``, or ``row`` for each row of the matrix along its short side, since
            the ranks of a LoRA factor differ.

    >>> from fedcompress.codecs import preview
    >>> print(preview("ternary", [0.9, -0.2, -1.1, 0.1]))
    5 bytes, relative squared error 0.36: [0.574, -0.574, -0.574, 0.574]
    """

    name: ClassVar[str] = "ternary"
    scale: str = "mse"
    gain: float = 1.0
    by: str = "tensor"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError("codec.ternary.scale", self.scale, f"one of {list(SCALES)}")
        if not 0.01 <= self.gain <= 100:
            raise ConfigError("codec.ternary.gain", self.gain, "must be from 0.01 to 100")
        if self.by not in UNITS:
            raise ConfigError("codec.ternary.by", self.by, f"one of {list(UNITS)}")

    def _index_scales(self, support: Support) -> tuple[int, NDArray[np.int64]]:
        """Return how many scales a tensor has, and the number of the scale of each entry that is sent."""
        if self.by == "tensor":
            return int(support.count > 0), np.zeros(support.count, np.int64)
        rows, index = np.unique(MatrixView.of(support.shape).locate(support.positions)[0], return_inverse=True)
        return rows.size, index

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append all scales, then all signs."""
        means = [np.zeros(0)]
        for value, support in zip(values, supports, strict=True):
            magnitude = np.abs(value)
            if self.by == "tensor":
                means.append(np.array([magnitude.mean(dtype=np.float64)] if value.size else []))
            else:
                count, index = self._index_scales(support)
                means.append(np.bincount(index, magnitude, count) / np.bincount(index, minlength=count))
        scales = np.minimum(self.gain * np.concatenate(means), np.finfo(np.float32).max).astype(np.float32)
        writer.raw(bfloat16.to_bfloat16(scales).astype("<u2").tobytes())
        write_signs(writer, [np.signbit(v) for v in values], supports)

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read ``scale`` or ``-scale`` for each entry."""
        units = [self._index_scales(s) for s in supports]
        scales = bfloat16.decode_scales(reader.raw(2 * sum(count for count, _ in units)))
        vectors = []
        at = 0
        for (count, index), negative in zip(units, read_signs(reader, supports), strict=True):
            own = scales[at : at + count]
            at += count
            if self.by == "tensor":
                scale = own[0] if count else np.float32(0)
                vectors.append(np.array([scale, -scale], np.float32)[negative.view(np.uint8)])
            else:
                vectors.append(np.where(negative, -own[index], own[index]).astype(np.float32))
        return vectors
