"""Rows of numbers to one entropy-coded stream and back, by trellis-coded quantization.

Symbols are coded position by position over all lanes at once (see ``trellis``), so that a
decoder, which needs each symbol to know the next quantizer, still works on arrays.
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
    points,
    search,
    shift_of,
    table_of,
)
from fedcompress.errors import PayloadError

_PROBABILITIES = (TABLES / TABLES.sum(-1, keepdims=True)).reshape(2 * CLASSES, ESCAPE + 1)


@dataclass(frozen=True)
class Lanes:
    """How rows are cut: row, first entry and length of each lane, longest first; and its class."""

    row: Ints
    start: Ints
    length: Ints
    classes: Ints

    @classmethod
    def cut(cls, sizes: Sequence[int], classes: Sequence[int]) -> Lanes:
        """Lanes of rows of the given sizes and classes."""
        counts = [-(-size // SEGMENT) for size in sizes]
        row = np.repeat(np.arange(len(sizes)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts).astype(np.int64)
        start = SEGMENT * (np.arange(row.size) - first)
        length = np.minimum(np.asarray(sizes, np.int64)[row] - start, SEGMENT)
        order = np.argsort(-length, kind="stable")
        return cls(row[order], start[order], length[order], np.asarray(classes, np.int64)[row[order]])

    @property
    def steps(self) -> int:
        """Length of the longest lane."""
        return int(self.length.max(initial=0))

    def active(self) -> Ints:
        """How many lanes are open at each step."""
        counts: Ints = (self.length[None, :] > np.arange(self.steps)[:, None]).sum(1)
        return counts

    def where(self) -> NDArray[np.bool_]:
        """Entries that exist, shape (steps, lanes)."""
        inside: NDArray[np.bool_] = np.arange(self.steps)[:, None] < self.length[None, :]
        return inside


def write_rows(writer: Writer, rows: Sequence[NDArray[np.float64]], classes: Sequence[int]) -> None:
    """Append rows that are in units of their steps; the reader knows sizes and classes."""
    lanes = Lanes.cut([r.size for r in rows], classes)
    values = np.zeros((lanes.steps, lanes.row.size))
    for lane, (row, start, length) in enumerate(zip(lanes.row, lanes.start, lanes.length, strict=True)):
        values[:length, lane] = rows[row][start : start + length]
    path = search(np.clip(values, -2.0 * MAX_K, 2.0 * MAX_K), lanes.length, lanes.classes)
    magnitude, inside = np.abs(path.k), lanes.where()
    shift = shift_of(lanes.classes)
    high = magnitude >> shift
    symbols = np.minimum(high, ESCAPE)
    for width in np.unique(shift[shift > 0]):
        low = (magnitude & ((1 << width) - 1)).T[shift == width][inside.T[shift == width]]
        writer.raw(pack_bits(low, int(width)))
    extras = high[inside & (symbols == ESCAPE)] - ESCAPE
    for extra in (extras.size, *extras.tolist()):
        writer.varint(extra)
    writer.stream(_magnitudes(lanes, symbols, path.quantizer))
    writer.raw(pack_bits((path.k < 0)[inside & (magnitude > 0)].astype(np.int64), 1))


def _magnitudes(lanes: Lanes, symbols: Ints, quantizer: Ints) -> bytes:
    coder, table = RangeWriter(), 2 * table_of(lanes.classes)
    for step, n in enumerate(lanes.active()):
        coder.put_each(symbols[step, :n], _PROBABILITIES[table[:n] + quantizer[step, :n]])
    return coder.getvalue()


def read_rows(reader: Reader, sizes: Sequence[int], classes: Sequence[int]) -> list[NDArray[np.float32]]:
    """Inverse of ``write_rows``: reconstruction points, in units of each row's step.

    Raises:
        PayloadError: the bytes do not decode to rows of these sizes.
    """
    lanes = Lanes.cut(sizes, classes)
    shift, inside = shift_of(lanes.classes), lanes.where()
    low = np.zeros((lanes.row.size, lanes.steps), np.int64)
    for width in np.unique(shift[shift > 0]):
        here = np.zeros(low.shape, np.bool_)
        here[shift == width] = inside.T[shift == width]
        count = int(here.sum())
        low[here] = unpack_bits(reader.raw((count * int(width) + 7) // 8), count, int(width))
    count = reader.varint()
    if count > int(inside.sum()):
        raise PayloadError(f"section: escapes: {count}: there are {int(inside.sum())} entries")
    extras = np.array([reader.varint() for _ in range(count)], np.int64)
    k, quantizer = _read_magnitudes(reader.stream(), lanes, low.T, extras)
    nonzero = inside & (k > 0)
    count = int(nonzero.sum())
    sign = np.ones(k.shape, np.int64)
    sign[nonzero] = 1 - 2 * unpack_bits(reader.raw((count + 7) // 8), count, 1)
    values = points(k * sign, quantizer, lanes.classes)
    out = [np.zeros(size, np.float32) for size in sizes]
    for lane, (row, start, length) in enumerate(zip(lanes.row, lanes.start, lanes.length, strict=True)):
        out[row][start : start + length] = values[:length, lane]
    return out


def _read_magnitudes(data: bytes, lanes: Lanes, low: Ints, extras: Ints) -> tuple[Ints, Ints]:
    """Magnitudes and quantizers, shape (steps, lanes)."""
    k, quantizer = np.zeros(low.shape, np.int64), np.zeros(low.shape, np.int64)
    coder, table, shift = RangeReader(data), 2 * table_of(lanes.classes), shift_of(lanes.classes)
    state, used = np.zeros(lanes.row.size, np.int64), 0
    for step, n in enumerate(lanes.active()):
        quantizer[step, :n] = QUANTIZER[state[:n]]
        high = coder.get_each(_PROBABILITIES[table[:n] + quantizer[step, :n]]).astype(np.int64)
        escaped = np.flatnonzero(high == ESCAPE)
        if used + escaped.size > extras.size:
            raise PayloadError(f"section: escapes: {extras.size}: more are needed")
        high[escaped] += np.minimum(extras[used : used + escaped.size], MAX_K + 1)
        used += escaped.size
        k[step, :n] = (high << shift[:n]) | low[step, :n]
        state[:n] = NEXT[state[:n], k[step, :n] & 1]
    if used != extras.size or int(k.max(initial=0)) > MAX_K:
        raise PayloadError(f"section: escapes: {extras.size}: {used} are needed, for magnitudes up to {MAX_K}")
    coder.finish()
    return k, quantizer
