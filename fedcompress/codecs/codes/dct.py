"""Columns of a cosine basis that both ends rebuild: indices and coefficients are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import NO_HINTS, EncoderHints, Support, safe_exponent, saturate
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.positions import read_places, write_places
from fedcompress.codecs.matrix_view import Grid
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.numerics import bfloat16
from fedcompress.numerics.seeded_bases import basis_row
from fedcompress.types import Array, TensorSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DCT:
    """Each matrix in the DCT-II basis of its long side; the ``columns`` strongest coefficients columns.

    The selection of DCT-AdamW's and Trion's projections (Modoranu et al. 2025, arXiv:2505.17967),
    used as a code: no basis is sent. Coefficients are in bfloat16. The basis is orthonormal, so
    that the squared error is the energy of the columns left out, but for rounding.
    """

    name: ClassVar[str] = "dct"
    uses_previous_update: ClassVar[bool] = False
    columns: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.columns <= 1 << 20:
            raise ConfigError("codec.dct.columns", self.columns, "must be from 1 to 2^20")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Chosen columns of all tensors, then their coefficients."""
        places, chosen, exponents = [], [], []
        for value in values:
            exponents.append(safe_exponent([value]))
            matrix = np.ldexp(Grid.of(value.shape).matrix(value).astype(np.float64), -exponents[-1])
            coefficients = _forward(matrix)
            energy = np.square(coefficients / max(np.abs(coefficients).max(initial=0), 1e-300)).sum(0)
            columns = np.sort(np.argsort(-energy, kind="stable")[: self.columns])
            places.append(Support((matrix.shape[1],), columns))
            chosen.append(coefficients[:, columns].astype(np.float32))
        writer = Writer()
        write_places(writer, places)
        for part, exponent in zip(chosen, exponents, strict=True):
            writer.i8(exponent)
            writer.raw(bfloat16.to_bfloat16(part.ravel()).astype("<u2").tobytes())
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Sums of coefficients times basis rows, each product and each sum rounded to float32."""
        grids = [Grid.of(m.shape) for m in members]
        places = read_places(reader, [(g.columns,) for g in grids])
        out = []
        for member, grid, place in zip(members, grids, places, strict=True):
            exponent = reader.i8()
            raw = np.frombuffer(reader.raw(2 * grid.rows * place.count), "<u2").astype(np.uint16)
            coefficients = bfloat16.from_bfloat16(raw).reshape(grid.rows, place.count)
            if not np.isfinite(coefficients).all():
                raise PayloadError(f"section: {member.name}: a coefficient is NaN or infinite")
            total = np.zeros((grid.rows, grid.columns), np.float32)
            assert place.positions is not None
            with np.errstate(over="ignore", invalid="ignore"):
                for k, frequency in enumerate(place.positions.tolist()):
                    total += np.multiply.outer(coefficients[:, k], basis_row(grid.columns, frequency))
            out.append(grid.tensor(saturate(total, exponent), member.shape))
        return out


def _forward(matrix: Floats) -> Floats:
    """Orthonormal DCT-II of each row, by a Fourier transform of twice the length."""
    size = matrix.shape[1]
    if not matrix.size:
        return matrix
    spectrum = np.fft.rfft(np.concatenate([matrix, matrix[:, ::-1]], 1))[:, :size]
    phase = np.exp(-0.5j * np.pi * np.arange(size) / size)
    scale = np.full(size, np.sqrt(2 / size))
    scale[0] = np.sqrt(1 / size)
    coefficients: Floats = (spectrum * phase).real / 2 * scale
    return coefficients
