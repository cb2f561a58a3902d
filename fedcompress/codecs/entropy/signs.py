"""Signs of the entries that are sent: the smaller of two coders.

    0  packed: one bit each
    1  agreement: by the signs above in the same column, one more bit a row that turns it

An update of rank one has the signs of an outer product, so that a row repeats the signs of the
rows before, or all of their opposites. On real LoRA updates signs then take 0.45 to 1 bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import RangeReader, RangeWriter
from fedcompress.codecs.entropy.row_model import Agreement
from fedcompress.codecs.entropy.symbols import pack_bits, unpack_bits
from fedcompress.codecs.matrix_view import Grid
from fedcompress.errors import PayloadError

PACKED, AGREEMENT = 0, 1
SAMPLE_TENSORS, SAMPLE_ROWS = 32, 16  # what coder 1 is tried on before it is used
Bits = NDArray[np.bool_]
_HALF = np.full(1, 0.5)


def write_signs(writer: Writer, negative: Sequence[Bits], places: Sequence[Support]) -> None:
    """Append the signs at the given places, True for minus."""
    flat = np.concatenate([*negative, np.zeros(0, np.bool_)])
    packed, agreed = pack_bits(flat.astype(np.uint8), 1), b""
    if _promises(negative, places):
        agreed = _write_agreement(negative, places)
    if agreed and len(agreed) < len(packed):
        writer.u8(AGREEMENT)
        writer.stream(agreed)
    else:
        writer.u8(PACKED)
        writer.raw(packed)


def read_signs(reader: Reader, places: Sequence[Support]) -> list[Bits]:
    """Inverse of ``write_signs``.

    Raises:
        PayloadError: the bytes do not decode.
    """
    coder = reader.u8() if reader.version > 1 else PACKED
    if coder == AGREEMENT:
        return _read_agreement(reader.stream(), places)
    if coder != PACKED:
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} or {AGREEMENT}")
    counts = [p.count for p in places]
    flat = unpack_bits(reader.raw((sum(counts) + 7) // 8), sum(counts), 1).astype(np.bool_)
    return list(np.split(flat, np.cumsum(counts)[:-1])) if counts else []


def _promises(negative: Sequence[Bits], places: Sequence[Support]) -> bool:
    """Whether coder 1 saves 2 % on the first rows of some tensors."""
    stride = -(-len(places) // SAMPLE_TENSORS)
    some_signs, some_places = [], []
    for signs, place in list(zip(negative, places, strict=True))[::stride] if stride else []:
        grid = Grid.of(place.shape)
        if grid.rows == 1 or not place.count:
            continue
        positions = np.arange(place.numel) if place.positions is None else place.positions
        early = grid.locate(positions)[0] < SAMPLE_ROWS
        some_signs.append(signs[early])
        some_places.append(Support(place.shape, positions[early]))
    count = sum(p.count for p in some_places)
    return count > 64 and 8 * len(_write_agreement(some_signs, some_places)) < 0.98 * count


def _rows(place: Support) -> tuple[int, Iterator[tuple[Indices, Indices]]]:
    """Number of columns; then, by row of the matrix: which signs are in it, and their columns."""
    grid = Grid.of(place.shape)
    row, column = grid.locate(place.positions)
    order = np.argsort(row, kind="stable")
    ends = np.searchsorted(row[order], np.arange(1, grid.rows))
    return grid.columns, ((part, column[part]) for part in np.split(order, ends) if part.size)


def _write_agreement(negative: Sequence[Bits], places: Sequence[Support]) -> bytes:
    coder, model = RangeWriter(), Agreement()
    for signs, place in zip(negative, places, strict=True):
        columns, rows = _rows(place)
        model.start(columns)
        for part, where in rows:
            contexts, plus = model.contexts(where), ~signs[part]
            if contexts.any():
                turned = np.array([int(np.where(plus, 1, -1) @ model.above(where)) < 0])
                coder.put_bits(turned, _HALF)
                plus = plus ^ turned
            agrees = plus == (model.above(where) >= 0)
            coder.put_bits(agrees, model.odds(contexts))
            model.learn(where, contexts, agrees, plus)
    return coder.getvalue()


def _read_agreement(data: bytes, places: Sequence[Support]) -> list[Bits]:
    coder, model, out = RangeReader(data), Agreement(), []
    for place in places:
        columns, rows = _rows(place)
        model.start(columns)
        signs = np.zeros(place.count, np.bool_)
        for part, where in rows:
            contexts = model.contexts(where)
            turned = coder.get_bits(_HALF) if contexts.any() else np.zeros(1, np.bool_)
            agrees = coder.get_bits(model.odds(contexts))
            plus = agrees == (model.above(where) >= 0)
            signs[part] = ~(plus ^ turned)
            model.learn(where, contexts, agrees, plus)
        out.append(signs)
    coder.finish()
    return out
