"""A tensor as a matrix with no more rows than columns."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape


class Grid(NamedTuple):
    """First dimension and all others together, turned where that has more rows than columns.

    Vectors, scalars and empty tensors have one row.
    """

    rows: int
    columns: int
    turned: bool

    @classmethod
    def of(cls, shape: Shape) -> Grid:
        """The grid of a tensor's shape."""
        rows, columns = flat_grid(shape)
        return cls(columns, rows, True) if rows > max(columns, 1) else cls(rows, columns, False)

    def matrix(self, value: NDArray[Any]) -> NDArray[Any]:
        """A view of a tensor, or of its flat entries, shape (rows, columns)."""
        return value.reshape(self.columns, self.rows).T if self.turned else value.reshape(self.rows, self.columns)

    def tensor(self, matrix: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Inverse of ``matrix``, contiguous."""
        return np.ascontiguousarray(matrix.T if self.turned else matrix).reshape(shape)

    def locate(self, positions: Indices | None = None) -> tuple[Indices, Indices]:
        """Row and column of flat positions of the tensor; None is all of them."""
        flat = np.arange(self.rows * self.columns) if positions is None else positions
        if self.turned:
            column, row = np.divmod(flat, self.rows)
        else:
            row, column = np.divmod(flat, max(self.columns, 1))
        return row, column


def flat_grid(shape: Shape) -> tuple[int, int]:
    """First dimension, and all others together, as they are; vectors and empty tensors have one row."""
    size = math.prod(shape)
    rows = shape[0] if len(shape) > 1 and size else 1
    return rows, size // rows
