"""Views a tensor of any shape as a matrix that has no more rows than columns."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape


class MatrixView(NamedTuple):
    """A grid says how a tensor is seen as a matrix of ``rows`` by ``columns``, ``rows <= columns``.

    The first dimension of the tensor gives the rows and all others together the columns; where that would be more
    rows than columns, the matrix is transposed. Vectors, scalars and empty tensors have one row.
    """

    rows: int
    columns: int
    transposed: bool

    @classmethod
    def of(cls, shape: Shape) -> MatrixView:
        """Return the grid of a tensor's shape."""
        rows, columns = matrix_shape(shape)
        if rows > max(columns, 1):
            return cls(columns, rows, True)
        return cls(rows, columns, False)

    def matrix(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a contiguous tensor, or of its flat entries, as a matrix of shape (rows, columns)."""
        if self.transposed:
            return value.reshape(self.columns, self.rows).T
        return value.reshape(self.rows, self.columns)

    def tensor(self, matrix: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Return a matrix of shape (rows, columns) as a C-contiguous tensor; inverts ``matrix``."""
        return np.ascontiguousarray(matrix.T if self.transposed else matrix).reshape(shape)

    def locate(self, positions: Indices | None = None) -> tuple[Indices, Indices]:
        """Return the matrix rows and the matrix columns of flat positions of the tensor; None means all entries."""
        flat = np.arange(self.rows * self.columns) if positions is None else positions
        if self.transposed:
            column, row = np.divmod(flat, self.rows)
        else:
            row, column = np.divmod(flat, max(self.columns, 1))
        return row, column


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Return the first dimension and the product of all others, not transposed.

    Vectors, scalars and empty tensors have one row.
    """
    size = math.prod(shape)
    rows = shape[0] if len(shape) > 1 and size else 1
    return rows, size // rows
