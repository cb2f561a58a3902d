"""Which entries are sent, as bytes: the smallest of four coders.

    0  packed: one bit an entry
    1  range: one bit an entry, by the density of its tensor (written by version 1 only)
    2  gaps: distances between entries, by the density of their tensor
    3  columns: one bit an entry, by what the rows before had in this column
    4  rows: as gaps, with a count and a density for each matrix row

Coder 2 is the fast one: its work grows with the number of entries sent, and it needs H(p) bits an
entry like an ideal coder of independent bits, since gaps are then geometric, and what is
left of a gap beyond the alphabet is geometric again. Coder 3 uses that rows of a LoRA factor
choose the same columns: on real updates it takes 8 to 35 % off H(p). Coder 4 is for
selections that give each row a density of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import RangeReader, RangeWriter, bernoulli, weighted
from fedcompress.codecs.entropy.row_model import RowCounts
from fedcompress.codecs.entropy.symbols import unpack_bits
from fedcompress.codecs.matrix_view import Grid
from fedcompress.errors import PayloadError

PACKED, RANGE, GAPS, COLUMNS, ROWS = 0, 1, 2, 3, 4
MAX_COLUMNS = 1 << 23  # entries up to which coder 3 is tried
MAX_ROWS = 1 << 16  # rows up to which coder 4 is tried
MAX_ALPHABET = 256


class CodedPlaces:
    """Selectors whose positions are sent."""

    gain: ClassVar[float] = 1.0

    def write(self, writer: Writer, places: Sequence[Support], seed: int) -> None:
        """Append the positions."""
        write_places(writer, places)

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
        """Inverse of ``write``."""
        return read_places(reader, shapes)


def write_places(writer: Writer, places: Sequence[Support]) -> None:
    """Append positions; the reader knows shapes."""
    total = sum(p.numel for p in places)
    choices = [(GAPS, _write_gaps(places))]
    if 4 * len(choices[0][1]) > total // 4:  # dense
        choices.append((PACKED, _write_packed(places)))
    if total <= MAX_COLUMNS:
        choices.append((COLUMNS, _write_columns(places)))
    if _rows_promise(places):
        choices.append((ROWS, _write_gaps([row for p in places for row in _split(p)])))
    coder, data = min(choices, key=lambda choice: len(choice[1]))
    writer.u8(coder)
    writer.raw(data)


def read_places(reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
    """Inverse of ``write_places``.

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
    return [Support(shape, found) for shape, found in zip(shapes, positions, strict=True)]


def _write_counts(writer: Writer, places: Sequence[Support]) -> list[Support]:
    """Append counts; returns the tensors of which some but not all entries are sent."""
    for p in places:
        writer.varint(p.count)
    return [p for p in places if 0 < p.count < p.numel]


def _read_counts(reader: Reader, sizes: Sequence[int]) -> list[int]:
    counts = [reader.varint() for _ in sizes]
    for count, size in zip(counts, sizes, strict=True):
        if count > size:
            raise PayloadError(f"section: count: {count}: at most {size}, the tensor's size")
    return counts


def _write_packed(places: Sequence[Support]) -> bytes:
    writer = Writer()
    bits = [np.zeros(0, np.bool_)]
    for p in _write_counts(writer, places):
        bits.append(np.zeros(p.numel, np.bool_))
        bits[-1][p.positions] = True
    writer.stream(np.packbits(np.concatenate(bits)).tobytes())
    return writer.getvalue()


def _read_packed(reader: Reader, sizes: Sequence[int], counts: Sequence[int]) -> list[Indices]:
    is_open = [0 < k < n for k, n in zip(counts, sizes, strict=True)]
    total = sum(n for n, o in zip(sizes, is_open, strict=True) if o)
    flat, at, out = unpack_bits(reader.stream(), total, 1), 0, []
    for size, count, opened in zip(sizes, counts, is_open, strict=True):
        if opened:
            out.append(np.flatnonzero(flat[at : at + size]))
            at += size
            _check_count(out[-1].size, count)
        else:
            out.append(np.arange(count))
    return out


def _check_count(found: int, count: int) -> None:
    if found != count:
        raise PayloadError(f"section: positions: {found}: the count says {count}")


def _gap_model(count: int, size: int) -> tuple[int, NDArray[np.float64]]:
    """Alphabet and probabilities of geometric gaps; the last symbol stands for a longer gap."""
    alphabet = 4
    while alphabet < min(3 * size // count, MAX_ALPHABET):
        alphabet *= 2
    density = count / size
    tail = np.multiply.accumulate(np.r_[1.0, np.full(alphabet - 1, 1.0 - density)])
    return alphabet, np.r_[tail[:-1] * density, tail[-1]]


def _write_gaps(places: Sequence[Support]) -> bytes:
    writer, coder = Writer(), RangeWriter()
    for p in _write_counts(writer, places):
        assert p.positions is not None
        alphabet, probabilities = _gap_model(p.count, p.numel)
        gaps = np.diff(p.positions, prepend=-1) - 1
        longer = gaps // (alphabet - 1)
        symbols = np.full(p.count + int(longer.sum()), alphabet - 1, np.int32)
        symbols[np.cumsum(longer + 1) - 1] = gaps - longer * (alphabet - 1)
        coder.put(symbols, weighted(probabilities))
    writer.stream(coder.getvalue())
    return writer.getvalue()


def _read_gaps(reader: Reader, sizes: Sequence[int], counts: Sequence[int]) -> list[Indices]:
    coder, out = RangeReader(reader.stream()), []
    for size, count in zip(sizes, counts, strict=True):
        if 0 < count < size:
            out.append(_gap_positions(coder, size, count))
        else:
            out.append(np.arange(count))
    coder.finish()
    return out


def _gap_positions(coder: RangeReader, size: int, count: int) -> Indices:
    alphabet, probabilities = _gap_model(count, size)
    model, pieces, found, read = weighted(probabilities), [], 0, 0
    while found < count:
        pieces.append(coder.get(model, count - found))
        found += int(np.count_nonzero(pieces[-1] != alphabet - 1))
        read += pieces[-1].size
        if read > count + (size - count) // (alphabet - 1):
            raise PayloadError(f"section: positions: beyond {size}, the tensor's size")
    symbols = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    ends = symbols != alphabet - 1
    positions: Indices = np.cumsum(symbols + ends, dtype=np.int64)[ends] - 1
    if positions[-1] >= size:
        raise PayloadError(f"section: positions: {int(positions[-1])}: beyond {size}, the tensor's size")
    return positions


def _row_counts(place: Support) -> NDArray[np.int64]:
    """How many entries of each matrix row are sent."""
    grid = Grid.of(place.shape)
    assert place.positions is not None
    if grid.turned:
        return np.bincount(place.positions % grid.rows, minlength=grid.rows)
    return np.diff(np.searchsorted(place.positions, np.arange(grid.rows + 1) * grid.columns))


def _bits(counts: NDArray[np.int64], size: int) -> float:
    """Entropy of masks of one size."""
    share = np.clip(counts / max(size, 1), 1e-12, 1 - 1e-12)
    return float(-size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)).sum())


def _rows_promise(places: Sequence[Support]) -> bool:
    """Whether rows of densities of their own would save more than their counts take."""
    grids = [Grid.of(p.shape) for p in places]
    if max((g.rows for g in grids), default=1) == 1 or sum(g.rows for g in grids) > MAX_ROWS:
        return False
    by_row = sum(_bits(_row_counts(p), g.columns) + 9 * g.rows for p, g in zip(places, grids, strict=True))
    return by_row < sum(_bits(np.array([p.count]), p.numel) + 9 for p in places)


def _split(place: Support) -> list[Support]:
    """A tensor's places by matrix row; each row is a tensor of its own."""
    grid = Grid.of(place.shape)
    row, column = grid.locate(place.positions)
    order = np.argsort(row, kind="stable")
    parts = np.split(column[order], np.searchsorted(row[order], np.arange(1, grid.rows)))
    return [Support((grid.columns,), part) for part in parts]


def _read_rows(reader: Reader, shapes: Sequence[Shape]) -> list[Indices]:
    grids = [Grid.of(s) for s in shapes]
    sizes = [g.columns for g in grids for _ in range(g.rows)]
    rows, at, out = _read_gaps(reader, sizes, _read_counts(reader, sizes)), 0, []
    for side, columns, turned in grids:
        own = rows[at : at + side]
        at += side
        if turned:
            out.append(np.sort(np.concatenate([row * side + i for i, row in enumerate(own)])))
        else:
            out.append(np.concatenate([row + i * columns for i, row in enumerate(own)]))
    return out


def _write_columns(places: Sequence[Support]) -> bytes:
    writer, coder, counts = Writer(), RangeWriter(), RowCounts()
    for p in places:
        mask = np.zeros(p.numel, np.bool_)
        mask[p.positions] = True
        for row in Grid.of(p.shape).matrix(mask):
            coder.put_bits(row, counts.next_row(row.size))
            counts.learn(row)
        counts.next_tensor()
    writer.stream(coder.getvalue())
    return writer.getvalue()


def _read_columns(reader: Reader, shapes: Sequence[Shape]) -> list[Indices]:
    coder, counts, out = RangeReader(reader.stream()), RowCounts(), []
    for shape in shapes:
        mask = np.zeros(Support(shape).numel, np.bool_)
        for row in Grid.of(shape).matrix(mask):
            row[:] = coder.get_bits(counts.next_row(row.size))
            counts.learn(row)
        counts.next_tensor()
        out.append(np.flatnonzero(mask))
    coder.finish()
    return out


def _read_version_1(reader: Reader, sizes: Sequence[int]) -> list[Indices]:
    counts, coder = _read_counts(reader, sizes), reader.u8()
    if coder == PACKED:
        return _read_packed(reader, sizes, counts)
    stream = RangeReader(reader.stream())
    if coder != RANGE:
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} or {RANGE}")
    if not any(0 < k < n for k, n in zip(counts, sizes, strict=True)):
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} where there are no positions")
    out = []
    for size, count in zip(sizes, counts, strict=True):
        if 0 < count < size:
            out.append(np.flatnonzero(stream.get(bernoulli(count, size), size)))
            _check_count(out[-1].size, count)
        else:
            out.append(np.arange(count))
    stream.finish()
    return out
