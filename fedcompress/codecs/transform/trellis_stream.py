"""Writes rows of numbers to one entropy-coded stream by trellis-coded quantization, and reads them.

Symbols are coded position by position over all lanes at once (see ``trellis``), so that a decoder, which needs each
symbol to know the next quantizer, still works on arrays. Magnitudes of k are cut in three: low bits, which are sent as
they are; a symbol up to ``ESCAPE``, which is entropy-coded; and what an escaped symbol leaves, as varints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import RangeReader, RangeWriter
from fedcompress.codecs.entropy.symbols import pack_bits, unpack_bits
from fedcompress.codecs.transform.codebook import CLASSES, ESCAPE, TABLES
from fedcompress.codecs.transform.trellis import (
    MAX_K,
    NEXT,
    QUANTIZER,
    SEGMENT,
    Ints,
    count_low_bits,
    find_table,
    points,
    search,
)
from fedcompress.errors import PayloadError

# Probabilities of each magnitude, shape (2 * CLASSES, ESCAPE + 1); row 2 * class + quantizer.
_PROBABILITIES = (TABLES / TABLES.sum(-1, keepdims=True)).reshape(2 * CLASSES, ESCAPE + 1)


@dataclass(frozen=True)
class Lanes:
    """Says how rows are cut into lanes, which are sorted, longest first; every array has the shape (lanes,).

    Args:
        row: the number of the row that a lane is cut from.
        start: the lane's first entry in that row.
        length: entries of the lane, from 1 to ``SEGMENT``.
        classes: the class of the row.
    """

    row: Ints
    start: Ints
    length: Ints
    classes: Ints

    @classmethod
    def cut(cls, sizes: Sequence[int], classes: Sequence[int]) -> Lanes:
        """Cut rows of the given sizes and classes into lanes."""
        counts = [-(-size // SEGMENT) for size in sizes]
        row = np.repeat(np.arange(len(sizes)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts).astype(np.int64)
        start = SEGMENT * (np.arange(row.size) - first)
        length = np.minimum(np.asarray(sizes, np.int64)[row] - start, SEGMENT)
        order = np.argsort(-length, kind="stable")
        return cls(row[order], start[order], length[order], np.asarray(classes, np.int64)[row[order]])

    @property
    def steps(self) -> int:
        """Return the length of the longest lane."""
        return int(self.length.max(initial=0))

    def active(self) -> Ints:
        """Return how many lanes have an entry at each step, shape (steps,); they are the first ones."""
        counts: Ints = (self.length[None, :] > np.arange(self.steps)[:, None]).sum(1)
        return counts

    def where(self) -> NDArray[np.bool_]:
        """Return which entries exist, shape (steps, lanes)."""
        inside: NDArray[np.bool_] = np.arange(self.steps)[:, None] < self.length[None, :]
        return inside


def write_trellis_rows(writer: Writer, rows: Sequence[NDArray[np.float64]], classes: Sequence[int]) -> None:
    """Append rows; the reader must know their sizes and classes.

    Args:
        writer: receives the bytes.
        rows: float64 vectors of any sizes, each in units of its step.
        classes: the class of each row, from 0 to ``MAX_CLASS``.
    """
    lanes = Lanes.cut([r.size for r in rows], classes)
    values = np.zeros((lanes.steps, lanes.row.size))
    for lane, (row, start, length) in enumerate(zip(lanes.row, lanes.start, lanes.length, strict=True)):
        values[:length, lane] = rows[row][start : start + length]
    path = search(np.clip(values, -2.0 * MAX_K, 2.0 * MAX_K), lanes.length, lanes.classes)
    magnitude, inside = np.abs(path.k), lanes.where()
    low_bits = count_low_bits(lanes.classes)
    high = magnitude >> low_bits
    symbols = np.minimum(high, ESCAPE)
    for width in np.unique(low_bits[low_bits > 0]):
        has_width = low_bits == width
        low = (magnitude & ((1 << width) - 1)).T[has_width][inside.T[has_width]]
        writer.raw(pack_bits(low, int(width)))
    extras = high[inside & (symbols == ESCAPE)] - ESCAPE
    writer.varint(extras.size)
    for extra in extras.tolist():
        writer.varint(extra)
    writer.stream(_encode_symbols(lanes, symbols, path.quantizer))
    writer.raw(pack_bits((path.k < 0)[inside & (magnitude > 0)].astype(np.int64), 1))


def _encode_symbols(lanes: Lanes, symbols: Ints, quantizer: Ints) -> bytes:
    coder, table = RangeWriter(), 2 * find_table(lanes.classes)
    for step, n in enumerate(lanes.active()):
        coder.put_each(symbols[step, :n], _PROBABILITIES[table[:n] + quantizer[step, :n]])
    return coder.getvalue()


def read_trellis_rows(reader: Reader, sizes: Sequence[int], classes: Sequence[int]) -> list[NDArray[np.float32]]:
    """Read the reconstruction points of rows, in units of each row's step.

    Args:
        reader: stands before the rows.
        sizes: entries of each row.
        classes: the class of each row.

    Returns:
        One float32 vector a row.

    Raises:
        PayloadError: the bytes do not decode to rows of these sizes.
    """
    lanes = Lanes.cut(sizes, classes)
    inside = lanes.where()
    low = _read_low_bits(reader, lanes, inside)
    count = reader.varint()
    if count > int(inside.sum()):
        raise PayloadError(f"section: escapes: {count}: there are {int(inside.sum())} entries")
    extras = np.array([reader.varint() for _ in range(count)], np.int64)
    k, quantizer = _read_magnitudes(reader.stream(), lanes, low, extras)
    is_nonzero = inside & (k > 0)
    count = int(is_nonzero.sum())
    sign = np.ones(k.shape, np.int64)
    sign[is_nonzero] = 1 - 2 * unpack_bits(reader.raw((count + 7) // 8), count, 1)
    values = points(k * sign, quantizer, lanes.classes)
    rows = [np.zeros(size, np.float32) for size in sizes]
    for lane, (row, start, length) in enumerate(zip(lanes.row, lanes.start, lanes.length, strict=True)):
        rows[row][start : start + length] = values[:length, lane]
    return rows


def _read_low_bits(reader: Reader, lanes: Lanes, inside: NDArray[np.bool_]) -> Ints:
    """Read the low bits of k, shape (steps, lanes); lanes of one width are written together, lane by lane."""
    low_bits = count_low_bits(lanes.classes)
    low = np.zeros((lanes.row.size, lanes.steps), np.int64)
    for width in np.unique(low_bits[low_bits > 0]):
        has_width = low_bits == width
        is_coded = np.zeros(low.shape, np.bool_)
        is_coded[has_width] = inside.T[has_width]
        count = int(is_coded.sum())
        low[is_coded] = unpack_bits(reader.raw((count * int(width) + 7) // 8), count, int(width))
    return low.T


def _read_magnitudes(data: bytes, lanes: Lanes, low: Ints, extras: Ints) -> tuple[Ints, Ints]:
    """Read magnitudes of k and quantizers, both of shape (steps, lanes)."""
    coder = RangeReader(data)
    table = 2 * find_table(lanes.classes)
    low_bits = count_low_bits(lanes.classes)
    k, quantizer = np.zeros(low.shape, np.int64), np.zeros(low.shape, np.int64)
    state = np.zeros(lanes.row.size, np.int64)
    used = 0  # extras that were used
    for step, n in enumerate(lanes.active()):
        quantizer[step, :n] = QUANTIZER[state[:n]]
        high = coder.get_each(_PROBABILITIES[table[:n] + quantizer[step, :n]]).astype(np.int64)
        escaped = np.flatnonzero(high == ESCAPE)
        if used + escaped.size > extras.size:
            raise PayloadError(f"section: escapes: {extras.size}: more are needed")
        high[escaped] += np.minimum(extras[used : used + escaped.size], MAX_K + 1)  # so that shifts do not overflow
        used += escaped.size
        k[step, :n] = (high << low_bits[:n]) | low[step, :n]
        state[:n] = NEXT[state[:n], k[step, :n] & 1]
    if used != extras.size or int(k.max(initial=0)) > MAX_K:
        raise PayloadError(f"section: escapes: {extras.size}: {used} are needed, for magnitudes up to {MAX_K}")
    coder.finish()
    return k, quantizer
