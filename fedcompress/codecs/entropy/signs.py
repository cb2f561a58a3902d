"""Encodes the signs of the entries that are sent, by the smaller of two coders.

    0  packed: one bit each
    1  agreement: by the signs above in the same column, and one more bit a row that may flip it

An update of rank one has the signs of an outer product, so that a row repeats the signs of the rows before, or has all
of their opposites. On real LoRA updates signs then take 0.45 to 1 bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import RangeReader, RangeWriter
from fedcompress.codecs.entropy.row_model import SignModel
from fedcompress.codecs.entropy.symbols import pack_bits, unpack_bits
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.errors import PayloadError

PACKED = 0
AGREEMENT = 1
SAMPLE_TENSORS = 32  # tensors that coder 1 is tried on before it is used
SAMPLE_ROWS = 16  # rows of each of them
Bits = NDArray[np.bool_]
_HALF = np.full(1, 0.5)


def write_signs(writer: Writer, negative: Sequence[Bits], supports: Sequence[Support]) -> None:
    """Append the signs of the entries that are sent.

    Args:
        writer: receives the bytes.
        negative: for each tensor True where an entry is negative, bool, shape (support.count,).
        supports: which entries of their tensors these are.
    """
    flat = np.concatenate([*negative, np.zeros(0, np.bool_)])
    packed = pack_bits(flat.astype(np.uint8), 1)
    if _agreement_pays(negative, supports):
        coded = _write_agreement(negative, supports)
        if coded and len(coded) < len(packed):
            writer.u8(AGREEMENT)
            writer.stream(coded)
            return
    writer.u8(PACKED)
    writer.raw(packed)


def read_signs(reader: Reader, supports: Sequence[Support]) -> list[Bits]:
    """Read for each support True where an entry is negative, bool, shape (support.count,).

    Raises:
        PayloadError: the bytes do not decode.
    """
    coder = reader.u8() if reader.version > 1 else PACKED
    if coder == AGREEMENT:
        return _read_agreement(reader.stream(), supports)
    if coder != PACKED:
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} or {AGREEMENT}")
    counts = [s.count for s in supports]
    flat = unpack_bits(reader.raw((sum(counts) + 7) // 8), sum(counts), 1).astype(np.bool_)
    return list(np.split(flat, np.cumsum(counts)[:-1])) if counts else []


def _agreement_pays(negative: Sequence[Bits], supports: Sequence[Support]) -> bool:
    """Return whether coder 1 saves 2 % on the first rows of some tensors."""
    if not supports:
        return False
    stride = -(-len(supports) // SAMPLE_TENSORS)
    sample_signs = []
    sample_supports = []
    for signs, support in list(zip(negative, supports, strict=True))[::stride]:
        grid = MatrixView.of(support.shape)
        if grid.rows == 1 or not support.count:
            continue
        positions = np.arange(support.numel) if support.positions is None else support.positions
        is_early = grid.locate(positions)[0] < SAMPLE_ROWS
        sample_signs.append(signs[is_early])
        sample_supports.append(Support(support.shape, positions[is_early]))
    count = sum(s.count for s in sample_supports)
    return count > 64 and 8 * len(_write_agreement(sample_signs, sample_supports)) < 0.98 * count


def _split_rows(support: Support) -> tuple[int, Iterator[tuple[Indices, Indices]]]:
    """Split the entries that are sent by matrix row.

    Returns the number of columns, and for each row that has entries: their numbers among all entries that are sent,
    and their columns.
    """
    grid = MatrixView.of(support.shape)
    row, column = grid.locate(support.positions)
    order = np.argsort(row, kind="stable")
    ends = np.searchsorted(row[order], np.arange(1, grid.rows))
    return grid.columns, ((part, column[part]) for part in np.split(order, ends) if part.size)


def _write_agreement(negative: Sequence[Bits], supports: Sequence[Support]) -> bytes:
    coder = RangeWriter()
    model = SignModel()
    for signs, support in zip(negative, supports, strict=True):
        width, rows = _split_rows(support)
        model.start(width)
        for part, columns in rows:
            contexts = model.contexts(columns)
            plus = ~signs[part]
            if contexts.any():
                is_flipped = np.array([int(np.where(plus, 1, -1) @ model.above(columns)) < 0])
                coder.put_bits(is_flipped, _HALF)
                plus = plus ^ is_flipped
            agrees = plus == (model.above(columns) >= 0)
            coder.put_bits(agrees, model.odds(contexts))
            model.learn(columns, contexts, agrees, plus)
    return coder.getvalue()


def _read_agreement(data: bytes, supports: Sequence[Support]) -> list[Bits]:
    coder = RangeReader(data)
    model = SignModel()
    negative = []
    for support in supports:
        width, rows = _split_rows(support)
        model.start(width)
        signs = np.zeros(support.count, np.bool_)
        for part, columns in rows:
            contexts = model.contexts(columns)
            is_flipped = coder.get_bits(_HALF) if contexts.any() else np.zeros(1, np.bool_)
            agrees = coder.get_bits(model.odds(contexts))
            plus = agrees == (model.above(columns) >= 0)
            signs[part] = ~(plus ^ is_flipped)
            model.learn(columns, contexts, agrees, plus)
        negative.append(signs)
    coder.finish()
    return negative
