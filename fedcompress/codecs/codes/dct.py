"""Sends a few columns of each matrix in a cosine basis, which both ends rebuild: indices and coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import NO_HINTS, EncoderHints, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.positions import read_positions, write_positions
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.errors import ConfigError, PayloadError
from fedcompress.numerics import bfloat16
from fedcompress.numerics.scaling import choose_exponent, saturate
from fedcompress.numerics.seeded_bases import basis_row
from fedcompress.types import Array, TensorSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DCT:
    """Transforms each matrix by the DCT-II along its long side, and sends the columns of largest energy.

    The selection is that of the projections of DCT-AdamW and Trion (Modoranu et al. 2025, arXiv:2505.17967), used as
    a code: no basis is sent. The basis is orthonormal, so that the squared error is the energy of the columns left
    out, up to the rounding of coefficients to bfloat16.

    Args:
        columns: coefficient columns that are sent of each matrix, from 1 to 2^20; fewer where there are fewer.

    >>> from fedcompress.codecs import preview
    >>> print(preview("dct(columns=2)", [4, 3, 2, 1, 1, 2, 3, 5]))
    10 bytes, relative squared error 0.012: [4.3, 3.32, 1.94, 0.962, 0.962, 1.94, 3.32, 4.3]
    """

    name: ClassVar[str] = "dct"
    uses_previous_update: ClassVar[bool] = False
    columns: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.columns <= 1 << 20:
            raise ConfigError("codec.dct.columns", self.columns, "must be from 1 to 2^20")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Encode the chosen columns of all tensors; then of each tensor an exponent of two and the coefficients."""
        supports = []
        coefficients = []
        exponents = []
        for value in values:
            exponents.append(choose_exponent([value]))
            matrix = np.ldexp(MatrixView.of(value.shape).matrix(value).astype(np.float64), -exponents[-1])
            spectrum = _transform(matrix)
            energy = np.square(spectrum / max(np.abs(spectrum).max(initial=0), 1e-300)).sum(0)
            columns = np.sort(np.argsort(-energy, kind="stable")[: self.columns])
            supports.append(Support((matrix.shape[1],), columns))
            coefficients.append(spectrum[:, columns].astype(np.float32))
        writer = Writer()
        write_positions(writer, supports)
        for part, exponent in zip(coefficients, exponents, strict=True):
            writer.i8(exponent)
            writer.raw(bfloat16.to_bfloat16(part.ravel()).astype("<u2").tobytes())
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode sums of coefficients times basis rows; each product and each sum is rounded to float32."""
        grids = [MatrixView.of(m.shape) for m in members]
        supports = read_positions(reader, [(g.columns,) for g in grids])
        tensors = []
        for member, grid, support in zip(members, grids, supports, strict=True):
            exponent = reader.i8()
            bits = np.frombuffer(reader.raw(2 * grid.rows * support.count), "<u2").astype(np.uint16)
            coefficients = bfloat16.from_bfloat16(bits).reshape(grid.rows, support.count)
            if not np.isfinite(coefficients).all():
                raise PayloadError(f"section: {member.name}: a coefficient is NaN or infinite")
            total = np.zeros((grid.rows, grid.columns), np.float32)
            assert support.positions is not None
            with np.errstate(over="ignore", invalid="ignore"):
                for k, frequency in enumerate(support.positions.tolist()):
                    total += np.multiply.outer(coefficients[:, k], basis_row(grid.columns, frequency))
            tensors.append(grid.tensor(saturate(total, exponent), member.shape))
        return tensors


def _transform(matrix: Floats) -> Floats:
    """Return the orthonormal DCT-II of each row, by a Fourier transform of twice the length."""
    size = matrix.shape[1]
    if not matrix.size:
        return matrix
    spectrum = np.fft.rfft(np.concatenate([matrix, matrix[:, ::-1]], 1))[:, :size]
    phase = np.exp(-0.5j * np.pi * np.arange(size) / size)
    scale = np.full(size, np.sqrt(2 / size))
    scale[0] = np.sqrt(1 / size)
    coefficients: Floats = (spectrum * phase).real / 2 * scale
    return coefficients
