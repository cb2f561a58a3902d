"""Encodes which entries are sent, by the smallest of four coders.

    0  packed: one bit an entry
    1  range: one bit an entry, by the density of its tensor (written by version 1 only)
    2  gaps: distances between entries, by the density of their tensor
    3  columns: one bit an entry, by what the rows before had in this column
    4  rows: as gaps, with a count and a density for each matrix row

Coder 2 is the fast one: its work grows with the number of entries that are sent. It needs H(p) bits an entry, like an
ideal coder of independent bits, since gaps are then geometric, and what is left of a gap beyond the alphabet is
geometric again. Coder 3 uses that the rows of a LoRA factor choose the same columns: on real updates it takes 8 to
35 % off H(p). Coder 4 is for selections that give each row a density of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import RangeReader, RangeWriter, bernoulli, weighted
from fedcompress.codecs.entropy.row_model import ColumnModel
from fedcompress.codecs.entropy.symbols import unpack_bits
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.errors import PayloadError

PACKED = 0
RANGE = 1
GAPS = 2
COLUMNS = 3
ROWS = 4
MAX_COLUMNS = 1 << 23  # entries up to which coder 3 is tried
MAX_ROWS = 1 << 16  # rows up to which coder 4 is tried
MAX_ALPHABET = 256  # symbols for gaps of coder 2, the last of which stands for a longer gap
_COUNT_BITS = 9  # bits that a count takes, about


class CodedPositions:
    """Gives a selector ``write`` and ``read``, which send its positions entropy-coded."""

    gain: ClassVar[float] = 1.0

    def write(self, writer: Writer, supports: Sequence[Support], seed: int) -> None:
        """Append the positions."""
        write_positions(writer, supports)

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
        """Read the positions of tensors of these shapes."""
        return read_positions(reader, shapes)


def write_positions(writer: Writer, supports: Sequence[Support]) -> None:
    """Append the positions of all supports; the reader must know the shapes."""
    total = sum(s.numel for s in supports)
    choices = [(GAPS, _write_gaps(supports))]
    if 4 * len(choices[0][1]) > total // 4:  # dense, so that one bit an entry may be less
        choices.append((PACKED, _write_packed(supports)))
    if total <= MAX_COLUMNS:
        choices.append((COLUMNS, _write_columns(supports)))
    if _row_coding_pays(supports):
        choices.append((ROWS, _write_gaps([row for s in supports for row in _split_rows(s)])))
    coder, data = min(choices, key=lambda choice: len(choice[1]))
    writer.u8(coder)
    writer.raw(data)


def read_positions(reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
    """Read the positions of tensors of these shapes.

    Raises:
        PayloadError: a count exceeds its size, positions do not match the counts, or the stream goes on.
    """
    sizes = [Support(shape).numel for shape in shapes]
    if reader.version == 1:
        positions = _read_version_1(reader, sizes)
    else:
        match reader.u8():
            case 0:
                positions = _read_packed(reader, sizes, _read_counts(reader, sizes))
            case 2:
                positions = _read_gaps(reader, sizes, _read_counts(reader, sizes))
            case 3:
                positions = _read_columns(reader, shapes)
            case 4:
                positions = _read_rows(reader, shapes)
            case other:
                raise PayloadError(f"section: coder: {other}: must be {PACKED}, {GAPS}, {COLUMNS} or {ROWS}")
    return [Support(shape, p) for shape, p in zip(shapes, positions, strict=True)]


def _write_counts(writer: Writer, supports: Sequence[Support]) -> list[Support]:
    """Append the counts, and return the supports with some but not all entries, whose positions must be sent too."""
    for support in supports:
        writer.varint(support.count)
    return [s for s in supports if 0 < s.count < s.numel]


def _read_counts(reader: Reader, sizes: Sequence[int]) -> list[int]:
    counts = [reader.varint() for _ in sizes]
    for count, size in zip(counts, sizes, strict=True):
        if count > size:
            raise PayloadError(f"section: count: {count}: at most {size}, the tensor's size")
    return counts


def _check_count(size: int, count: int) -> None:
    if size != count:
        raise PayloadError(f"section: positions: {size}: the count says {count}")


# Coder 0: packed


def _write_packed(supports: Sequence[Support]) -> bytes:
    writer = Writer()
    masks = [np.zeros(0, np.bool_)]
    for support in _write_counts(writer, supports):
        mask = np.zeros(support.numel, np.bool_)
        mask[support.positions] = True
        masks.append(mask)
    writer.stream(np.packbits(np.concatenate(masks)).tobytes())
    return writer.getvalue()


def _read_packed(reader: Reader, sizes: Sequence[int], counts: Sequence[int]) -> list[Indices]:
    is_partial = [0 < k < n for k, n in zip(counts, sizes, strict=True)]
    total = sum(n for n, partial in zip(sizes, is_partial, strict=True) if partial)
    mask = unpack_bits(reader.stream(), total, 1)
    positions = []
    at = 0
    for size, count, partial in zip(sizes, counts, is_partial, strict=True):
        if partial:
            positions.append(np.flatnonzero(mask[at : at + size]))
            at += size
            _check_count(positions[-1].size, count)
        else:
            positions.append(np.arange(count))
    return positions


# Coder 2: gaps


def _gap_model(count: int, size: int) -> tuple[int, NDArray[np.float64]]:
    """Return the alphabet and the probabilities of geometric gaps; the last symbol stands for a longer gap."""
    alphabet = 4
    while alphabet < min(3 * size // count, MAX_ALPHABET):
        alphabet *= 2
    density = count / size
    tail = np.multiply.accumulate(np.r_[1.0, np.full(alphabet - 1, 1.0 - density)])
    return alphabet, np.r_[tail[:-1] * density, tail[-1]]


def _write_gaps(supports: Sequence[Support]) -> bytes:
    writer = Writer()
    coder = RangeWriter()
    for support in _write_counts(writer, supports):
        assert support.positions is not None
        alphabet, probabilities = _gap_model(support.count, support.numel)
        gaps = np.diff(support.positions, prepend=-1) - 1
        longer = gaps // (alphabet - 1)  # how often the last symbol comes before each gap's own
        symbols = np.full(support.count + int(longer.sum()), alphabet - 1, np.int32)
        symbols[np.cumsum(longer + 1) - 1] = gaps - longer * (alphabet - 1)
        coder.put(symbols, weighted(probabilities))
    writer.stream(coder.getvalue())
    return writer.getvalue()


def _read_gaps(reader: Reader, sizes: Sequence[int], counts: Sequence[int]) -> list[Indices]:
    coder = RangeReader(reader.stream())
    positions = []
    for size, count in zip(sizes, counts, strict=True):
        if 0 < count < size:
            positions.append(_read_gap_positions(coder, size, count))
        else:
            positions.append(np.arange(count))
    coder.finish()
    return positions


def _read_gap_positions(coder: RangeReader, size: int, count: int) -> Indices:
    """Read the positions of ``count`` of ``size`` entries."""
    alphabet, probabilities = _gap_model(count, size)
    model = weighted(probabilities)
    pieces = []
    complete = 0  # gaps that were read to their end
    read = 0  # symbols that were read
    while complete < count:
        pieces.append(coder.get(model, count - complete))
        complete += int(np.count_nonzero(pieces[-1] != alphabet - 1))
        read += pieces[-1].size
        if read > count + (size - count) // (alphabet - 1):
            raise PayloadError(f"section: positions: beyond {size}, the tensor's size")
    symbols = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    ends = symbols != alphabet - 1
    positions: Indices = np.cumsum(symbols + ends, dtype=np.int64)[ends] - 1
    if positions[-1] >= size:
        raise PayloadError(f"section: positions: {int(positions[-1])}: beyond {size}, the tensor's size")
    return positions


# Coder 4: rows


def _count_by_row(support: Support) -> NDArray[np.int64]:
    """Return how many entries of each matrix row are sent, shape (grid.rows,)."""
    grid = MatrixView.of(support.shape)
    assert support.positions is not None
    if grid.transposed:
        return np.bincount(support.positions % grid.rows, minlength=grid.rows)
    return np.diff(np.searchsorted(support.positions, np.arange(grid.rows + 1) * grid.columns))


def _compute_entropy(counts: NDArray[np.int64], size: int) -> float:
    """Return the bits of random masks of one size, with these counts of ones, by their entropy."""
    share = np.clip(counts / max(size, 1), 1e-12, 1 - 1e-12)
    return float(-size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)).sum())


def _row_coding_pays(supports: Sequence[Support]) -> bool:
    """Return whether a density for each row would save more bits than the counts of the rows take."""
    grids = [MatrixView.of(s.shape) for s in supports]
    if max((g.rows for g in grids), default=1) == 1 or sum(g.rows for g in grids) > MAX_ROWS:
        return False
    by_row = sum(
        _compute_entropy(_count_by_row(s), g.columns) + _COUNT_BITS * g.rows
        for s, g in zip(supports, grids, strict=True)
    )
    return by_row < sum(_compute_entropy(np.array([s.count]), s.numel) + _COUNT_BITS for s in supports)


def _split_rows(support: Support) -> list[Support]:
    """Split a support by matrix row; each row becomes the support of a vector of its own."""
    grid = MatrixView.of(support.shape)
    row, column = grid.locate(support.positions)
    order = np.argsort(row, kind="stable")
    parts = np.split(column[order], np.searchsorted(row[order], np.arange(1, grid.rows)))
    return [Support((grid.columns,), part) for part in parts]


def _read_rows(reader: Reader, shapes: Sequence[Shape]) -> list[Indices]:
    grids = [MatrixView.of(s) for s in shapes]
    sizes = [g.columns for g in grids for _ in range(g.rows)]
    rows = _read_gaps(reader, sizes, _read_counts(reader, sizes))
    positions = []
    at = 0
    for side, columns, is_transposed in grids:
        own = rows[at : at + side]
        at += side
        if is_transposed:
            positions.append(np.sort(np.concatenate([row * side + i for i, row in enumerate(own)])))
        else:
            positions.append(np.concatenate([row + i * columns for i, row in enumerate(own)]))
    return positions


# Coder 3: columns


def _write_columns(supports: Sequence[Support]) -> bytes:
    writer = Writer()
    coder = RangeWriter()
    model = ColumnModel()
    for support in supports:
        mask = np.zeros(support.numel, np.bool_)
        mask[support.positions] = True
        for row in MatrixView.of(support.shape).matrix(mask):
            coder.put_bits(row, model.next_row(row.size))
            model.learn(row)
        model.next_tensor()
    writer.stream(coder.getvalue())
    return writer.getvalue()


def _read_columns(reader: Reader, shapes: Sequence[Shape]) -> list[Indices]:
    coder = RangeReader(reader.stream())
    model = ColumnModel()
    positions = []
    for shape in shapes:
        mask = np.zeros(Support(shape).numel, np.bool_)
        for row in MatrixView.of(shape).matrix(mask):
            row[:] = coder.get_bits(model.next_row(row.size))
            model.learn(row)
        model.next_tensor()
        positions.append(np.flatnonzero(mask))
    coder.finish()
    return positions


# Sections of version 1: coders 0 and 1


def _read_version_1(reader: Reader, sizes: Sequence[int]) -> list[Indices]:
    counts = _read_counts(reader, sizes)
    coder = reader.u8()
    if coder == PACKED:
        return _read_packed(reader, sizes, counts)
    stream = RangeReader(reader.stream())
    if coder != RANGE:
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} or {RANGE}")
    if not any(0 < k < n for k, n in zip(counts, sizes, strict=True)):
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} where there are no positions")
    positions = []
    for size, count in zip(sizes, counts, strict=True):
        if 0 < count < size:
            positions.append(np.flatnonzero(stream.get(bernoulli(count, size), size)))
            _check_count(positions[-1].size, count)
        else:
            positions.append(np.arange(count))
    stream.finish()
    return positions
