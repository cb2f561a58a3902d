"""Entropy coding of masks and small integers, with constriction's range coder.

A stream begins with one byte that names its coder; the writer keeps the smallest.

    0  packed: fixed width, most significant bit first
    1  range: static model; what the model needs is in front

The range coder's words are 32 bits, little-endian. All models are built from integer
counts by IEEE divisions, and constriction turns them into fixed point without libm, so
decoding gives equal symbols on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Mask, Reader, Writer
from fedcompress.errors import PayloadError

PACKED, RANGE = 0, 1
CHUNK = 1 << 16  # symbols that are spread into bits at a time; a multiple of 8, so that chunks end with a byte
Symbols = NDArray[np.int32]


def pack_bits(symbols: NDArray[np.integer], bits: int) -> bytes:
    """Nonnegative integers in ``bits`` bits each, most significant first, padded with 0 to a byte."""
    shifts = np.arange(bits - 1, -1, -1)
    pieces = (symbols[at : at + CHUNK, None] for at in range(0, symbols.size, CHUNK))
    return b"".join(np.packbits((piece >> shifts & 1).astype(np.uint8).ravel()).tobytes() for piece in pieces)


def unpack_bits(data: bytes, count: int, bits: int) -> Symbols:
    """Inverse of ``pack_bits``.

    Raises:
        PayloadError: the size or the padding is wrong.
    """
    if len(data) != (count * bits + 7) // 8:
        raise PayloadError(f"section: packed stream: {len(data)} bytes: {(count * bits + 7) // 8} needed")
    raw = np.frombuffer(data, np.uint8)
    if count * bits % 8 and raw[-1] & (0xFF >> count * bits % 8):
        raise PayloadError("section: packed stream: padding bits must be 0")
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.int32)
    symbols = np.empty(count, np.int32)
    for at in range(0, count, CHUNK):
        size = min(CHUNK, count - at)
        flat = np.unpackbits(raw[at * bits // 8 : (at + CHUNK) * bits // 8], count=size * bits)
        symbols[at : at + size] = flat.reshape(size, bits).astype(np.int32) @ weights
    return symbols


def _words(data: bytes) -> NDArray[np.uint32]:
    if len(data) % 4:
        raise PayloadError(f"section: range stream: {len(data)} bytes: must be a multiple of 4")
    return np.frombuffer(data, "<u4").astype(np.uint32)


def write_masks(writer: Writer, masks: Sequence[Mask]) -> None:
    """Counts of each mask, then all positions in one stream."""
    counts = [int(m.sum()) for m in masks]
    for count in counts:
        writer.varint(count)
    open_masks = [(m, k) for m, k in zip(masks, counts, strict=True) if 0 < k < m.size]
    encoder = constriction.stream.queue.RangeEncoder()
    for mask, count in open_masks:
        encoder.encode(mask.astype(np.int32), _bernoulli(count, mask.size))
    ranged = encoder.get_compressed().astype("<u4").tobytes()
    packed = np.packbits(np.concatenate([m for m, _ in open_masks])).tobytes() if open_masks else b""
    coder, data = min([(PACKED, packed), (RANGE, ranged)], key=lambda choice: len(choice[1]))
    writer.u8(coder)
    writer.stream(data)


def read_masks(reader: Reader, sizes: Sequence[int]) -> list[Mask]:
    """Inverse of ``write_masks`` for tensors of the given sizes.

    Raises:
        PayloadError: a count exceeds its size, positions do not match the counts, or bytes are left over.
    """
    counts = []
    for size in sizes:
        counts.append(reader.varint())
        if counts[-1] > size:
            raise PayloadError(f"section: count: {counts[-1]}: at most {size}, the tensor's size")
    coder, data = reader.u8(), reader.stream()
    is_open = [0 < k < n for k, n in zip(counts, sizes, strict=True)]
    if coder == PACKED:
        total = sum(n for n, o in zip(sizes, is_open, strict=True) if o)
        flat = unpack_bits(data, total, 1).astype(np.bool_)
    elif coder != RANGE:
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} or {RANGE}")
    elif not any(is_open):
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} where there are no positions")
    decoder = constriction.stream.queue.RangeDecoder(_words(data)) if coder == RANGE else None
    masks, at = [], 0
    for size, count, opened in zip(sizes, counts, is_open, strict=True):
        if not opened:
            masks.append(np.full(size, count > 0, np.bool_))
            continue
        if decoder is not None:
            mask = _decode(decoder, _bernoulli(count, size), size).astype(np.bool_)
        else:
            mask, at = flat[at : at + size], at + size
        if int(mask.sum()) != count:
            raise PayloadError(f"section: positions: {int(mask.sum())}: the count says {count}")
        masks.append(mask)
    if decoder is not None:
        _finish(decoder)
    return masks


def _bernoulli(count: int, size: int) -> Any:
    return constriction.stream.model.Bernoulli(count / size, perfect=False)


def _categorical(histogram: NDArray[Any], count: int) -> Any:
    return constriction.stream.model.Categorical(histogram / count, perfect=False)


def _decode(decoder: Any, model: Any, count: int) -> Symbols:
    """Next ``count`` symbols; garbage decodes to garbage or to an error, never to a crash."""
    try:
        return np.asarray(decoder.decode(model, count), dtype=np.int32)
    except (AssertionError, ValueError) as error:
        raise PayloadError(f"section: range stream: {error}") from error


def _finish(decoder: Any) -> None:
    if not decoder.maybe_exhausted():
        raise PayloadError("section: range stream: goes on after the last symbol")


def write_symbols(writer: Writer, symbols: Symbols, alphabet: int) -> None:
    """Integers in ``[0, alphabet)``, ``alphabet >= 2``; the reader knows how many."""
    bits = (alphabet - 1).bit_length()
    histogram = np.bincount(symbols, minlength=alphabet)
    if symbols.size:
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols, _categorical(histogram, symbols.size))
        table = Writer()
        for count in histogram:
            table.varint(int(count))
        ranged = table.getvalue() + encoder.get_compressed().astype("<u4").tobytes()
        if len(ranged) < (symbols.size * bits + 7) // 8:
            writer.u8(RANGE)
            writer.stream(ranged)
            return
    writer.u8(PACKED)
    writer.stream(pack_bits(symbols, bits))


def read_symbols(reader: Reader, count: int, alphabet: int) -> Symbols:
    """Inverse of ``write_symbols``.

    Raises:
        PayloadError: the stream does not decode to ``count`` symbols of the alphabet, to other ones than
            its histogram says, or goes on after them.
    """
    coder, data = reader.u8(), reader.stream()
    if coder == PACKED:
        symbols = unpack_bits(data, count, (alphabet - 1).bit_length())
        if count and int(symbols.max()) >= alphabet:
            raise PayloadError(f"section: symbol: {int(symbols.max())}: must be below {alphabet}")
        return symbols
    if coder != RANGE:
        raise PayloadError(f"section: coder: {coder}: must be {PACKED} or {RANGE}")
    table = Reader(data)
    histogram = np.array([table.varint() for _ in range(alphabet)], dtype=np.float64)
    if histogram.sum() != count or not count:
        raise PayloadError(f"section: histogram: {histogram.sum():.0f} symbols: must be {count}")
    decoder = constriction.stream.queue.RangeDecoder(_words(table.rest()))
    symbols = _decode(decoder, _categorical(histogram, count), count)
    if (np.bincount(symbols, minlength=alphabet) != histogram).any():
        raise PayloadError("section: histogram: is not that of the symbols")
    _finish(decoder)
    return symbols
