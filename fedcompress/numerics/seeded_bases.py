"""Seeded bases that both ends of a connection rebuild bit for bit, so that only coefficients travel."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedcompress.numerics.philox import signs, words
from fedcompress.types import Array

Floats = NDArray[np.float64]
BASES = ("random", "dct")
_QUARTER_PI = 0.7853981633974483


def shared_seed(run: str, round_: int) -> int:
    """63 bits that all sites and the coordinator of a run have in a round."""
    text = f"{run}/{round_}/shared"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def basis_of(kind: str, size: int, rank: int, seed: int, name: str) -> Array:
    """Rows of a basis for vectors of a length, shape (rank, size), of norm 1.

    Args:
        kind: ``random``: entries are plus or minus ``1 / sqrt(size)``, so that rows are orthogonal only in the mean;
            ``dct``: that many of the cosines, drawn without replacement, orthonormal.
        size: length of a row.
        rank: at most ``size``.
        seed: from ``shared_seed``.
        name: of the parameter, so that each has a basis of its own.
    """
    if kind == "random":
        scale = np.float32(1 / np.sqrt(np.float64(size)))
        return (signs(seed, f"subspace/{name}", rank * size) * scale).reshape(rank, size)
    order = np.argsort(words(seed, f"subspace/{name}", size), kind="stable")[:rank]
    return np.stack([basis_row(size, int(frequency)) for frequency in np.sort(order)])


def project(matrix: Array, basis: Array) -> Array:
    """Coefficients of the rows' best approximation in a basis, shape (rows, rank)."""
    wide = basis.astype(np.float64)
    return np.linalg.solve(wide @ wide.T, wide @ matrix.T.astype(np.float64)).T.astype(np.float32)


def expand(coefficients: Array, basis: Array) -> Array:
    """Sums of coefficients times basis rows, each product and each sum rounded to float32."""
    total = np.zeros((coefficients.shape[0], basis.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(basis.shape[0]):
            total += np.multiply.outer(coefficients[:, k], basis[k])
    return total


def basis_row(size: int, frequency: int) -> Array:
    """``c cos(pi (2 j + 1) frequency / (2 size))``, j from 0, rounded once to float32: equal on every machine."""
    angle = (2 * np.arange(size, dtype=np.int64) + 1) * frequency % (4 * size)  # in units of pi / (2 size)
    scale = np.sqrt(np.float64(1 if frequency == 0 else 2) / np.float64(size))
    row: Array = (cosine(angle, size) * scale).astype(np.float32)
    return row


def cosine(angle: NDArray[np.int64], size: int) -> Floats:
    """Cosine of ``angle * pi / (2 size)``, ``0 <= angle < 4 size``: reduced exactly, then Taylor's series.

    Sums and products of float64 only, in a fixed order.
    """
    mirrored = np.minimum(angle, 4 * size - angle)  # 0 .. 2 size: up to pi
    negative = mirrored > size
    first = np.where(negative, 2 * size - mirrored, mirrored)  # 0 .. size: up to pi / 2
    use_sine = 2 * first > size
    reduced = np.where(use_sine, size - first, first)  # up to pi / 4
    x = reduced.astype(np.float64) * (_QUARTER_PI * 2) / np.float64(size)
    square = x * x
    cos_sum, sin_sum = np.zeros_like(x), np.zeros_like(x)
    for n in range(10, 0, -1):
        cos_sum = (cos_sum + 1) * (-square / np.float64((2 * n - 1) * (2 * n)))
        sin_sum = (sin_sum + 1) * (-square / np.float64((2 * n) * (2 * n + 1)))
    value = np.where(use_sine, x * (sin_sum + 1), cos_sum + 1)
    return np.where(negative, -value, value)
