"""Rounds, writes and reads the rotation of each tensor, and which of its rows are sent.

A tensor is in one of three modes: nothing of it is sent, or it is rotated, or some of its rows are sent as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import Adaptive, RangeReader, RangeWriter
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.codecs.transform.bit_allocation import MAX_SIDE, BitPlan, TensorSpectrum, vector_bits
from fedcompress.codecs.transform.trellis import MAX_CLASS, Ints
from fedcompress.errors import PayloadError
from fedcompress.types import Array, TensorSpec

EMPTY = 0  # modes of a tensor, as they are coded
ROTATED = 1
PLAIN = 2
_STATES = MAX_CLASS + 2  # of a plain row: 0 if it is not sent, else its class plus 1


@dataclass(frozen=True)
class Basis:
    """Says how the rows that are sent make up a tensor.

    Args:
        grid: the tensor's matrix.
        vectors: singular vectors, rounded to integers that are not normalized, int64, shape (grid.rows, rows sent);
            None where rows are sent as they are.
        row_indices: which matrix rows are sent as they are, ascending, shape (rows sent,); of no use with
            ``vectors``.
        classes: the class of each row that is sent.
    """

    grid: MatrixView
    vectors: Ints | None
    row_indices: Ints
    classes: list[int]

    def steps(self, step: float, weight: float) -> NDArray[np.float64]:
        """Return the step of each row that is sent, shape (rows sent,).

        Steps are divided by the lengths of the vectors, so that one step of any row counts alike in the tensor.

        Args:
            step: of the update.
            weight: what the squared error of this tensor counts.

        Returns:
            Steps, float64, shape (rows sent,).
        """
        tensor_step = step / np.sqrt(np.float64(weight))
        if self.vectors is None:
            return np.full(len(self.classes), tensor_step)
        steps: NDArray[np.float64] = tensor_step / np.sqrt(np.square(self.vectors).sum(0).astype(np.float64))
        return steps


def rotate(spectrum: TensorSpectrum, value: Array, plan: BitPlan) -> tuple[Basis, NDArray[np.float64]]:
    """Round the basis of a plan, and find the rows to send: the least squares solution in the rounded basis.

    Args:
        spectrum: of the tensor.
        value: the tensor, float32.
        plan: what is sent of it.

    Returns:
        The basis, and the rows, float64, shape (rows sent, grid.columns).
    """
    grid = MatrixView.of(value.shape)
    side, columns, _ = grid
    matrix = grid.matrix(value)
    if not plan.rotated:
        rows = matrix[plan.indices].astype(np.float64)
        return Basis(grid, None, plan.indices, plan.classes.tolist()), rows
    unit = spectrum.vectors[:, : plan.indices.size]
    # Signs are free; a positive sum makes the bytes independent of the eigensolver's choice.
    unit = unit * np.where(unit.sum(0) < 0, -1.0, 1.0)
    vectors = np.rint(unit * 2.0 ** vector_bits(columns.bit_length(), side.bit_length(), plan.classes)).astype(np.int64)
    rows = np.linalg.solve((vectors.T @ vectors).astype(np.float64), vectors.T @ matrix.astype(np.float64))
    return Basis(grid, vectors, plan.indices, plan.classes.tolist()), rows


class _Models:
    """The adaptive models of one stream of bases, alike for writer and reader."""

    def __init__(self) -> None:
        geometric = np.maximum(256 >> np.minimum(np.arange(2 * _STATES + 1), 30), 1)
        self.mode = Adaptive(np.full(3, 32))
        self.first = Adaptive(np.full(_STATES, 4))  # the class of a first component
        self.next = Adaptive(geometric)  # 0 ends the components, else 1 plus the zigzag of the drop in class
        self.plain = Adaptive(geometric)  # the zigzag of the change of a plain row's state
        self._vectors: dict[tuple[int, int], Adaptive] = {}

    def vector(self, bits: int, side: int) -> Adaptive:
        """Return the model of a unit vector's entries, of ``side`` entries with ``bits`` fraction bits.

        Its prior is a parabola's square over five deviations; all sides of one bit length share a model.
        """
        key = (bits, side.bit_length())
        if key not in self._vectors:
            reach = max((5 << bits) // (1 << (side.bit_length() // 2)), 2)
            distance = np.minimum(np.abs(np.arange(-(1 << bits), (1 << bits) + 1)), reach)
            self._vectors[key] = Adaptive(1 + 64 * (reach * reach - distance * distance) ** 2 // reach**4)
        return self._vectors[key]


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(code: int) -> int:
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


def write_bases(writer: Writer, bases: Sequence[Basis]) -> None:
    """Append all bases in one stream; the reader must know the shapes of the tensors."""
    coder, models = RangeWriter(), _Models()
    for basis in bases:
        if basis.grid.rows * basis.grid.columns == 0:
            continue
        if not basis.classes:
            models.mode.put(coder, np.array([EMPTY]))
        elif basis.vectors is None:
            models.mode.put(coder, np.array([PLAIN]))
            _write_plain(coder, models, basis)
        else:
            models.mode.put(coder, np.array([ROTATED]))
            _write_rotated(coder, models, basis)
    writer.stream(coder.getvalue())


def _write_plain(coder: RangeWriter, models: _Models, basis: Basis) -> None:
    states = np.zeros(basis.grid.rows, np.int64)
    states[basis.row_indices] = np.array(basis.classes) + 1
    previous = np.r_[0, states[:-1]]
    for change in (states - previous).tolist():
        models.plain.put(coder, np.array([_zigzag(change)]))


def _write_rotated(coder: RangeWriter, models: _Models, basis: Basis) -> None:
    assert basis.vectors is not None
    classes = basis.classes
    models.first.put(coder, np.array([classes[0]]))
    for one, two in pairwise(classes):
        models.next.put(coder, np.array([1 + _zigzag(one - two)]))
    if len(classes) < basis.grid.rows:  # the end needs no symbol where there can be no more components
        models.next.put(coder, np.array([0]))
    side, columns, _ = basis.grid
    bits = vector_bits(columns.bit_length(), side.bit_length(), np.array(classes))
    for number, width in enumerate(bits.tolist()):
        models.vector(width, side).put(coder, basis.vectors[:, number] + (1 << width))


def read_bases(reader: Reader, members: Sequence[TensorSpec], rank: int) -> list[Basis]:
    """Read one basis for each tensor.

    Args:
        reader: stands before the stream of bases.
        members: the tensors.
        rank: the largest number of components of a tensor.

    Returns:
        The bases, with vectors that are not 0 and classes from 0 to ``MAX_CLASS``.

    Raises:
        PayloadError: the stream does not decode to bases of these tensors.
    """
    coder, models = RangeReader(reader.stream()), _Models()
    bases = []
    for member in members:
        grid = MatrixView.of(member.shape)
        side, columns, _ = grid
        row_indices = np.zeros(0, np.int64)
        vectors = None
        classes: list[int] = []
        mode = int(models.mode.get(coder, 1)[0]) if member.numel else EMPTY
        if mode == ROTATED:
            classes, vectors = _read_rotated(coder, models, side, columns, rank, member.name)
        elif mode == PLAIN:
            row_indices, classes = _read_plain(coder, models, side, member.name)
        bases.append(Basis(grid, vectors, row_indices, classes))
    coder.finish()
    return bases


def _read_rotated(
    coder: RangeReader, models: _Models, side: int, columns: int, rank: int, name: str
) -> tuple[list[int], Ints]:
    """Return classes, and vectors of shape (side, components)."""
    limit = min(side, rank)
    if not 1 < side <= MAX_SIDE:
        raise PayloadError(f"section: {name}: is rotated, with a small side of {side}: must be from 2 to {MAX_SIDE}")
    classes = [int(models.first.get(coder, 1)[0])]
    while len(classes) < side:
        code = int(models.next.get(coder, 1)[0])
        if code == 0:
            break
        classes.append(classes[-1] - _unzigzag(code - 1))
        if len(classes) > limit:
            raise PayloadError(f"section: {name}: more components than {limit}")
    if not all(0 <= c <= MAX_CLASS for c in classes):
        raise PayloadError(f"section: {name}: a class is not from 0 to {MAX_CLASS}")
    vectors = []
    for width in vector_bits(columns.bit_length(), side.bit_length(), np.array(classes)).tolist():
        vectors.append(models.vector(width, side).get(coder, side).astype(np.int64) - (1 << width))
        if not vectors[-1].any():
            raise PayloadError(f"section: {name}: a singular vector is zero")
    return classes, np.stack(vectors, 1)


def _read_plain(coder: RangeReader, models: _Models, side: int, name: str) -> tuple[Ints, list[int]]:
    """Return the matrix rows that are sent, and their classes."""
    states = np.zeros(side, np.int64)
    state = 0
    for row in range(side):
        state += _unzigzag(int(models.plain.get(coder, 1)[0]))
        if not 0 <= state < _STATES:
            raise PayloadError(f"section: {name}: a class is not from 0 to {MAX_CLASS}")
        states[row] = state
    row_indices = np.flatnonzero(states)
    if not row_indices.size:
        raise PayloadError(f"section: {name}: is not empty, but has no row")
    return row_indices, (states[row_indices] - 1).tolist()
