"""Writes and reads low-rank factors in bfloat16, which is what ``svd`` and ``powersgd`` send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.matrix_view import matrix_shape
from fedcompress.errors import PayloadError
from fedcompress.numerics import bfloat16
from fedcompress.numerics.scaling import choose_exponent, saturate
from fedcompress.types import Array, TensorSpec

Floats = NDArray[np.float64]
# From a tensor's spec, its matrix (rows, columns) and a rank: factors (rows, rank) and (rank, columns).
Factorize = Callable[[TensorSpec, Floats, int], tuple[Floats, Floats]]


def choose_rank(member: TensorSpec, rank: int) -> int:
    """Return the rank that is sent of a tensor, at most ``rank``; 0 where the tensor itself is no larger."""
    rows, columns = matrix_shape(member.shape)
    used = min(rank, rows, columns)
    return used if used * (rows + columns) < rows * columns else 0


def write_factors(
    writer: Writer, members: Sequence[TensorSpec], values: Sequence[Array], rank: int, factorize: Factorize
) -> None:
    """Append of each tensor an exponent of two and its factors, or the whole tensor where it is no larger.

    Args:
        writer: receives the bytes.
        members: the tensors.
        values: their values, finite float32.
        rank: the largest rank that is sent of a tensor.
        factorize: computes the factors of a tensor's matrix, which is scaled so that products are safe.
    """
    for member, value in zip(members, values, strict=True):
        used = choose_rank(member, rank)
        if used:
            exponent = choose_exponent([value])
            writer.i8(exponent)
            matrix = np.ldexp(value.reshape(matrix_shape(member.shape)).astype(np.float64), -exponent)
            pieces = [factor.astype(np.float32) for factor in factorize(member, matrix, used)]
        else:
            pieces = [value]
        for piece in pieces:
            writer.raw(bfloat16.to_bfloat16(piece.ravel()).astype("<u2").tobytes())


def read_factors(reader: Reader, members: Sequence[TensorSpec], rank: int) -> list[Array]:
    """Read factors and multiply them: sums of outer products, each product and sum rounded to float32, in order.

    Args:
        reader: stands before the first factor.
        members: the tensors.
        rank: the largest rank that was sent of a tensor.

    Returns:
        The tensors, float32, of the members' shapes.

    Raises:
        PayloadError: bytes are missing, or a factor is not finite.
    """
    tensors = []
    for member in members:
        rows, columns = matrix_shape(member.shape)
        used = choose_rank(member, rank)
        if not used:
            tensors.append(_read_values(reader, member, member.numel).reshape(member.shape))
            continue
        exponent = reader.i8()
        left = _read_values(reader, member, rows * used).reshape(rows, used)
        right = _read_values(reader, member, used * columns).reshape(used, columns)
        total = np.zeros((rows, columns), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for k in range(used):
                total += np.multiply.outer(left[:, k], right[k])
        tensors.append(saturate(total, exponent).reshape(member.shape))
    return tensors


def _read_values(reader: Reader, member: TensorSpec, count: int) -> Array:
    values = bfloat16.from_bfloat16(np.frombuffer(reader.raw(2 * count), "<u2").astype(np.uint16))
    if not np.isfinite(values).all():
        raise PayloadError(f"section: {member.name}: a factor is NaN or infinite")
    return values
