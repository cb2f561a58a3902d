"""Ternary quantization: after a selection, each kept value is +scale or -scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.signs import read_signs, write_signs
from fedcompress.codecs.matrix_view import Grid
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array

SCALES = ("mse",)
UNITS = ("tensor", "row")


@dataclass(frozen=True, kw_only=True)
class Ternary:
    """Signs, and one bfloat16 scale for each tensor, or matrix row, with kept values.

    ``scale="mse"`` is the mean magnitude of the kept values: for given signs it has the
    least squared error (sparse ternary compression, arXiv:1903.02891, algorithm 1).
    The code released with ComPEFT takes the signed mean in its STC baseline, which is
    near zero for symmetric values; the paper's rule is followed here. ``gain`` multiplies it,
    for a scale that was calibrated by what a model puts out (``codecs.calibrate``). With
    ``by="row"`` the short side of each matrix has the scales: a LoRA factor's ranks differ.
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

    def _units(self, place: Support) -> tuple[int, NDArray[np.int64]]:
        """How many scales a tensor has, and which of them each entry takes."""
        if self.by == "tensor":
            return int(place.count > 0), np.zeros(place.count, np.int64)
        rows, used = np.unique(Grid.of(place.shape).locate(place.positions)[0], return_inverse=True)
        return rows.size, used

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """All scales, then all signs."""
        means = [np.zeros(0)]
        for value, place in zip(values, places, strict=True):
            magnitude = np.abs(value)
            if self.by == "tensor":
                means.append(np.array([magnitude.mean(dtype=np.float64)] if value.size else []))
            else:
                count, unit = self._units(place)
                means.append(np.bincount(unit, magnitude, count) / np.bincount(unit, minlength=count))
        scales = np.minimum(self.gain * np.concatenate(means), np.finfo(np.float32).max).astype(np.float32)
        writer.raw(bfloat16.to_bfloat16(scales).astype("<u2").tobytes())
        write_signs(writer, [np.signbit(v) for v in values], places)

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """``scale`` or ``-scale`` for each entry."""
        units = [self._units(p) for p in places]
        scales, at, out = bfloat16.scales_from(reader.raw(2 * sum(n for n, _ in units))), 0, []
        for (count, unit), negative in zip(units, read_signs(reader, places), strict=True):
            own = scales[at : at + count]
            at += count
            if self.by == "tensor":
                scale = own[0] if count else np.float32(0)
                out.append(np.array([scale, -scale], np.float32)[negative.view(np.uint8)])
            else:
                out.append(np.where(negative, -own[unit], own[unit]).astype(np.float32))
        return out
