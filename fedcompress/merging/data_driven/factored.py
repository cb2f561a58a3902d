"""Matrices that are kept as two factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Pair
from fedcompress.merging.updates import Updates
from fedcompress.types import Array


@dataclass(frozen=True)
class Factored:
    """The matrix ``left @ right``: shapes (rows, rank) and (rank, columns), float64."""

    left: Floats
    right: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return self.left.shape[0], self.right.shape[1]

    def columns(self, start: int, stop: int) -> Floats:
        """Some columns of the product, shape (rows, stop - start)."""
        product: Floats = self.left @ self.right[:, start:stop]
        return product

    def dense(self) -> Floats:
        """The product."""
        return self.columns(0, self.shape[1])


def stacked(parts: Sequence[Factored]) -> Factored:
    """The sum of products, with the ranks of all."""
    return Factored(np.hstack([p.left for p in parts]), np.vstack([p.right for p in parts]))


def change_of(pair: Pair, base: Mapping[str, Array], updates: Updates, site: int, scaling: float = 1.0) -> Factored:
    """``scaling * (B_i A_i - B A)`` of a site, rank 2r, as ``dB A_i + B dA``, where nothing cancels."""
    da = updates.read(site, pair.a.name).reshape(pair.a.shape).astype(np.float64)
    db = updates.read(site, pair.b.name).reshape(pair.b.shape).astype(np.float64)
    left = np.hstack([db, base[pair.b.name].astype(np.float64)])
    return Factored(scaling * left, np.vstack([base[pair.a.name] + da, da]))


def check_matrix(field: str, matrix: Floats | Array, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a matrix has this shape and is finite."""
    if matrix.shape != shape:
        raise ConfigError(field, list(matrix.shape), f"must have the shape {list(shape)}")
    if not np.isfinite(matrix).all():
        raise ConfigError(field, "NaN or infinity", "must be finite")


def check_number(field: str, value: float, low: float, high: float) -> None:
    """Raise ``ConfigError`` unless a number is in a range, ends included."""
    if not low <= value <= high:
        raise ConfigError(field, value, f"must be from {low:g} to {high:g}")
