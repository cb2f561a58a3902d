"""Low-rank factors in bfloat16: what ``svd`` and ``powersgd`` send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import safe_exponent, saturate
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.matrix_view import flat_grid
from fedcompress.errors import PayloadError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array, TensorSpec

Floats = NDArray[np.float64]
Factorize = Callable[[TensorSpec, Floats, int], tuple[Floats, Floats]]


def rank_of(member: TensorSpec, rank: int) -> int:
    """The rank that is sent; 0 where the tensor itself is no larger."""
    rows, columns = flat_grid(member.shape)
    used = min(rank, rows, columns)
    return used if used * (rows + columns) < rows * columns else 0


def write_factors(
    writer: Writer, members: Sequence[TensorSpec], values: Sequence[Array], rank: int, factorize: Factorize
) -> None:
    """Append an exponent of two and factors, (rows, rank) and (rank, columns), or the tensor."""
    for member, value in zip(members, values, strict=True):
        used = rank_of(member, rank)
        if used:
            exponent = safe_exponent([value])
            writer.i8(exponent)
            matrix = np.ldexp(value.reshape(flat_grid(member.shape)).astype(np.float64), -exponent)
            pieces = [factor.astype(np.float32) for factor in factorize(member, matrix, used)]
        else:
            pieces = [value]
        for piece in pieces:
            writer.raw(bfloat16.to_bfloat16(piece.ravel()).astype("<u2").tobytes())


def read_factors(reader: Reader, members: Sequence[TensorSpec], rank: int) -> list[Array]:
    """Sums of outer products, each product and each sum rounded to float32.

    Raises:
        PayloadError: bytes are missing, or a factor is not finite.
    """
    out = []
    for member in members:
        rows, columns = flat_grid(member.shape)
        used = rank_of(member, rank)
        if not used:
            out.append(_read(reader, member, member.numel).reshape(member.shape))
            continue
        exponent = reader.i8()
        left = _read(reader, member, rows * used).reshape(rows, used)
        right = _read(reader, member, used * columns).reshape(used, columns)
        total = np.zeros((rows, columns), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(used):
                total += np.multiply.outer(left[:, k], right[k])
        out.append(saturate(total, exponent).reshape(member.shape))
    return out


def _read(reader: Reader, member: TensorSpec, count: int) -> Array:
    values = bfloat16.from_bfloat16(np.frombuffer(reader.raw(2 * count), "<u2").astype(np.uint16))
    if not np.isfinite(values).all():
        raise PayloadError(f"section: {member.name}: a factor is NaN or infinite")
    return values
