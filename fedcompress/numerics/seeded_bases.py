"""Builds bases from a seed, bit for bit alike at both ends of a connection, so that only coefficients travel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcompress.numerics.philox import hash_seed, signs, words
from fedcompress.types import Array

Floats = NDArray[np.float64]
BASES = ("random", "dct")  # kinds that ``basis_of`` builds
_QUARTER_PI = 0.7853981633974483


def shared_seed(run: str, round_: int) -> int:
    """Return the seed, from 0 to 2^63 - 1, that all sites and the coordinator of a run share in a round."""
    return hash_seed(run, round_, "shared")


def basis_of(kind: str, size: int, rank: int, seed: int, name: str) -> Array:
    """Build the basis of a subspace from a seed and a parameter's name.

    Args:
        kind: ``random`` has entries of plus or minus ``1 / sqrt(size)``, so that rows are orthogonal only in the mean;
            ``dct`` has ``rank`` of the cosines, drawn without replacement, which are orthonormal.
        size: the length of a row.
        rank: the number of rows, at most ``size``.
        seed: from ``shared_seed``.
        name: of the parameter, so that each has a basis of its own.

    Returns:
        Rows of norm 1, float32, shape (rank, size).
    """
    if kind == "random":
        scale = np.float32(1 / np.sqrt(np.float64(size)))
        return (signs(seed, f"subspace/{name}", rank * size) * scale).reshape(rank, size)
    order = np.argsort(words(seed, f"subspace/{name}", size), kind="stable")[:rank]
    return np.stack([basis_row(size, int(frequency)) for frequency in np.sort(order)])


def project(matrix: Array, basis: Array) -> Array:
    """Return the coefficients of the best approximation of each row in a basis.

    Args:
        matrix: shape (rows, columns).
        basis: linearly independent rows, shape (rank, columns).

    Returns:
        Coefficients, float32, shape (rows, rank).
    """
    wide = basis.astype(np.float64)
    return np.linalg.solve(wide @ wide.T, wide @ matrix.T.astype(np.float64)).T.astype(np.float32)


def expand(coefficients: Array, basis: Array) -> Array:
    """Return ``coefficients @ basis``, with each product and each sum rounded to float32, in the order of the rank.

    Args:
        coefficients: float32, shape (rows, rank).
        basis: float32, shape (rank, columns).

    Returns:
        The matrix, float32, shape (rows, columns); it may overflow to infinity.
    """
    total = np.zeros((coefficients.shape[0], basis.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(basis.shape[0]):
            total += np.multiply.outer(coefficients[:, k], basis[k])
    return total


def basis_row(size: int, frequency: int) -> Array:
    """Return one row of the orthonormal DCT-II basis, float32, shape (size,), equal on every machine.

    Entry j is ``c cos(pi (2 j + 1) frequency / (2 size))``, rounded once, where c makes the norm 1.
    """
    angle = (2 * np.arange(size, dtype=np.int64) + 1) * frequency % (4 * size)  # in units of pi / (2 size)
    scale = np.sqrt(np.float64(1 if frequency == 0 else 2) / np.float64(size))
    row: Array = (cosine(angle, size) * scale).astype(np.float32)
    return row


def cosine(angle: NDArray[np.int64], size: int) -> Floats:
    """Return the cosine of ``angle * pi / (2 size)`` in float64, for integers ``0 <= angle < 4 size``.

    The angle is reduced exactly, to at most pi / 4, and put into Taylor's series: sums and products of float64 alone,
    in a fixed order, so that every machine gives equal bits.
    """
    mirrored = np.minimum(angle, 4 * size - angle)  # from 0 to 2 size, which is pi
    negative = mirrored > size
    first = np.where(negative, 2 * size - mirrored, mirrored)  # from 0 to size, which is pi / 2
    use_sine = 2 * first > size
    reduced = np.where(use_sine, size - first, first)  # at most pi / 4
    x = reduced.astype(np.float64) * (_QUARTER_PI * 2) / np.float64(size)
    square = x * x
    cos_sum, sin_sum = np.zeros_like(x), np.zeros_like(x)
    for n in range(10, 0, -1):  # Horner's rule, from the smallest term
        cos_sum = (cos_sum + 1) * (-square / np.float64((2 * n - 1) * (2 * n)))
        sin_sum = (sin_sum + 1) * (-square / np.float64((2 * n) * (2 * n + 1)))
    value = np.where(use_sine, x * (sin_sum + 1), cos_sum + 1)
    return np.where(negative, -value, value)
