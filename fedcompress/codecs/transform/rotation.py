"""The rotation of each tensor, and which of its rows are sent: rounding, writing, reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import Adaptive, RangeReader, RangeWriter
from fedcompress.codecs.matrix_view import Grid
from fedcompress.codecs.transform.bit_allocation import MAX_SIDE, Plan, Spectrum, vector_bits
from fedcompress.codecs.transform.trellis import MAX_CLASS, Ints
from fedcompress.errors import PayloadError
from fedcompress.types import Array, TensorSpec

EMPTY, ROTATED, PLAIN = 0, 1, 2
_STATES = MAX_CLASS + 2  # a class, or 0 for a row that is not sent


@dataclass(frozen=True)
class Basis:
    """How the rows that are sent make up a tensor.

    ``vectors`` are integers of shape (grid.rows, rows sent); None where rows are sent as they are,
    and then ``kept`` says which.
    """

    grid: Grid
    vectors: Ints | None
    kept: Ints
    classes: list[int]

    def steps(self, step: float, weight: float) -> NDArray[np.float64]:
        """The step of each row: all weigh alike in the tensor, whatever the length of their vector."""
        own = step / np.sqrt(np.float64(weight))
        if self.vectors is None:
            return np.full(len(self.classes), own)
        steps: NDArray[np.float64] = own / np.sqrt(np.square(self.vectors).sum(0).astype(np.float64))
        return steps


def rotate(spectrum: Spectrum, value: Array, plan: Plan) -> tuple[Basis, NDArray[np.float64]]:
    """The rounded basis of a plan, and the rows to send: least squares in that basis."""
    grid = Grid.of(value.shape)
    side, columns, _ = grid
    matrix = grid.matrix(value)
    if not plan.rotated:
        rows = matrix[plan.kept].astype(np.float64)
        return Basis(grid, None, plan.kept, plan.classes.tolist()), rows
    unit = spectrum.vectors[:, : plan.kept.size]
    # Signs are free; a positive sum makes the bytes independent of the eigensolver's choice.
    unit = unit * np.where(unit.sum(0) < 0, -1.0, 1.0)
    vectors = np.rint(unit * 2.0 ** vector_bits(columns.bit_length(), side.bit_length(), plan.classes)).astype(np.int64)
    rows = np.linalg.solve((vectors.T @ vectors).astype(np.float64), vectors.T @ matrix.astype(np.float64))
    return Basis(grid, vectors, plan.kept, plan.classes.tolist()), rows


class _Models:
    """Adaptive models, alike at both ends."""

    def __init__(self) -> None:
        self.mode = Adaptive(np.full(3, 32))
        self.first = Adaptive(np.full(_STATES, 4))
        self.next = Adaptive(np.maximum(256 >> np.minimum(np.arange(2 * _STATES + 1), 30), 1))
        self.plain = Adaptive(np.maximum(256 >> np.minimum(np.arange(2 * _STATES + 1), 30), 1))
        self._vectors: dict[tuple[int, int], Adaptive] = {}

    def vector(self, bits: int, side: int) -> Adaptive:
        """Entries of a unit vector of ``side`` entries: a parabola's square over its likely range."""
        key = (bits, side.bit_length())
        if key not in self._vectors:
            reach = max((5 << bits) // (1 << (side.bit_length() // 2)), 2)
            place = np.minimum(np.abs(np.arange(-(1 << bits), (1 << bits) + 1)), reach)
            self._vectors[key] = Adaptive(1 + 64 * (reach * reach - place * place) ** 2 // reach**4)
        return self._vectors[key]


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(code: int) -> int:
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


def write_bases(writer: Writer, bases: Sequence[Basis]) -> None:
    """Append all bases in one stream; the reader knows shapes."""
    coder, models = RangeWriter(), _Models()
    for basis in bases:
        if basis.grid.rows * basis.grid.columns == 0:
            continue
        mode = EMPTY if not basis.classes else PLAIN if basis.vectors is None else ROTATED
        models.mode.put(coder, np.array([mode]))
        if mode == ROTATED:
            _write_rotated(coder, models, basis)
        elif mode == PLAIN:
            states = np.zeros(basis.grid.rows, np.int64)
            states[basis.kept] = np.array(basis.classes) + 1
            before = np.r_[0, states[:-1]]
            for state, last in zip(states.tolist(), before.tolist(), strict=True):
                models.plain.put(coder, np.array([_zigzag(state - last)]))
    writer.stream(coder.getvalue())


def _write_rotated(coder: RangeWriter, models: _Models, basis: Basis) -> None:
    assert basis.vectors is not None
    models.first.put(coder, np.array([basis.classes[0]]))
    for last, this in zip(basis.classes, [*basis.classes[1:], None], strict=True):
        if this is not None:
            models.next.put(coder, np.array([1 + _zigzag(last - this)]))
        elif len(basis.classes) < basis.grid.rows:
            models.next.put(coder, np.array([0]))
    side, columns, _ = basis.grid
    bits = vector_bits(columns.bit_length(), side.bit_length(), np.array(basis.classes))
    for number, width in enumerate(bits.tolist()):
        models.vector(width, side).put(coder, basis.vectors[:, number] + (1 << width))


def read_bases(reader: Reader, members: Sequence[TensorSpec], rank: int) -> list[Basis]:
    """Inverse of ``write_bases``.

    Raises:
        PayloadError: the stream does not decode to bases of these tensors.
    """
    coder, models = RangeReader(reader.stream()), _Models()
    out = []
    for member in members:
        grid = Grid.of(member.shape)
        side, columns, _ = grid
        kept, vectors = np.zeros(0, np.int64), None
        classes: list[int] = []
        mode = int(models.mode.get(coder, 1)[0]) if member.numel else EMPTY
        if mode == ROTATED:
            classes, vectors = _read_rotated(coder, models, side, columns, rank, member.name)
        elif mode == PLAIN:
            kept, classes = _read_plain(coder, models, side, member.name)
        out.append(Basis(grid, vectors, kept, classes))
    coder.finish()
    return out


def _read_rotated(
    coder: RangeReader, models: _Models, side: int, columns: int, rank: int, name: str
) -> tuple[list[int], Ints]:
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
    columns_of = []
    for width in vector_bits(columns.bit_length(), side.bit_length(), np.array(classes)).tolist():
        columns_of.append(models.vector(width, side).get(coder, side).astype(np.int64) - (1 << width))
        if not columns_of[-1].any():
            raise PayloadError(f"section: {name}: a singular vector is zero")
    return classes, np.stack(columns_of, 1)


def _read_plain(coder: RangeReader, models: _Models, side: int, name: str) -> tuple[Ints, list[int]]:
    states, last = np.zeros(side, np.int64), 0
    for row in range(side):
        last += _unzigzag(int(models.plain.get(coder, 1)[0]))
        if not 0 <= last < _STATES:
            raise PayloadError(f"section: {name}: a class is not from 0 to {MAX_CLASS}")
        states[row] = last
    kept = np.flatnonzero(states)
    if not kept.size:
        raise PayloadError(f"section: {name}: is not empty, but has no row")
    return kept, (states[kept] - 1).tolist()
