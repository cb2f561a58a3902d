"""A matrix that is the product of two thin factors is kept as these factors."""

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
    """A factored matrix stands for the product ``left @ right``."""

    left: Floats  # (rows, rank), float64
    right: Floats  # (rank, columns), float64

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the product, (rows, columns)."""
        return self.left.shape[0], self.right.shape[1]

    def columns(self, start: int, stop: int) -> Floats:
        """Compute some columns of the product, shape (rows, stop - start)."""
        product: Floats = self.left @ self.right[:, start:stop]
        return product

    def dense(self) -> Floats:
        """Compute the whole product."""
        return self.columns(0, self.shape[1])


def stack_factors(parts: Sequence[Factored]) -> Factored:
    """Return the sum of factored matrices of one shape; its rank is the sum of their ranks."""
    return Factored(np.hstack([p.left for p in parts]), np.vstack([p.right for p in parts]))


def factor_change(pair: Pair, base: Mapping[str, Array], updates: Updates, site: int, scaling: float = 1.0) -> Factored:
    """Compute the change of a LoRA module's product at one site, ``scaling * (B_i A_i - B A)``, in factors.

    It is computed as ``dB A_i + B dA``, where nothing cancels.

    Args:
        pair: the module's two tensors.
        base: the published state.
        updates: updates of the sites.
        site: number of the site.
        scaling: what the adapter multiplies ``B A`` with, alpha / r.

    Returns:
        Factors of twice the adapter's rank.
    """
    da = updates.read(site, pair.a.name).reshape(pair.a.shape).astype(np.float64)
    db = updates.read(site, pair.b.name).reshape(pair.b.shape).astype(np.float64)
    left = np.hstack([db, base[pair.b.name].astype(np.float64)])
    return Factored(scaling * left, np.vstack([base[pair.a.name] + da, da]))


def check_matrix(field: str, matrix: Floats | Array, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a matrix has a given shape and is finite.

    Args:
        field: name of the argument, for the message.
        matrix: the matrix.
        shape: the shape that it must have.

    Raises:
        ConfigError: the shape is another one, or a value is NaN or infinite.
    """
    if matrix.shape != shape:
        raise ConfigError(field, list(matrix.shape), f"must have the shape {list(shape)}")
    if not np.isfinite(matrix).all():
        raise ConfigError(field, "NaN or infinity", "must be finite")


def check_number(field: str, value: float, low: float, high: float) -> None:
    """Raise ``ConfigError`` unless a number is in a range.

    Args:
        field: name of the argument, for the message.
        value: the number.
        low: the least number that is allowed.
        high: the largest number that is allowed.

    Raises:
        ConfigError: the number is outside of the range.
    """
    if not low <= value <= high:
        raise ConfigError(field, value, f"must be from {low:g} to {high:g}")
