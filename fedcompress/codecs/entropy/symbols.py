"""Encodes small nonnegative integers, by the smaller of two coders.

0  packed: fixed width, most significant bit first
1  range: a static model; a histogram of the symbols is in front
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import RangeReader, RangeWriter, Symbols, categorical
from fedcompress.errors import PayloadError

PACKED = 0
RANGE = 1
CHUNK = 1 << 16  # symbols that are spread into bits at a time; a multiple of 8, so that chunks end with a byte


def pack_bits(symbols: NDArray[np.integer], bits: int) -> bytes:
    """Pack nonnegative integers in ``bits`` bits each, most significant bit first, padded with 0 to a byte."""
    if bits == 1:
        return np.packbits(symbols.astype(np.uint8)).tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    pieces = (symbols[at : at + CHUNK, None] for at in range(0, symbols.size, CHUNK))
    return b"".join(np.packbits((piece >> shifts & 1).astype(np.uint8).ravel()).tobytes() for piece in pieces)


def unpack_bits(data: bytes, count: int, bits: int) -> Symbols:
    """Unpack what ``pack_bits`` packed.

    Args:
        data: exactly the packed bytes.
        count: the number of symbols.
        bits: the width of a symbol.

    Returns:
        The symbols, int32, shape (count,).

    Raises:
        PayloadError: the size or the padding is wrong.
    """
    if len(data) != (count * bits + 7) // 8:
        raise PayloadError(f"section: packed stream: {len(data)} bytes: {(count * bits + 7) // 8} needed")
    raw = np.frombuffer(data, np.uint8)
    if count * bits % 8 and raw[-1] & (0xFF >> count * bits % 8):
        raise PayloadError("section: packed stream: padding bits must be 0")
    if bits == 1:
        return np.unpackbits(raw, count=count).astype(np.int32)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.int32)
    symbols = np.empty(count, np.int32)
    for at in range(0, count, CHUNK):
        size = min(CHUNK, count - at)
        flat = np.unpackbits(raw[at * bits // 8 : (at + CHUNK) * bits // 8], count=size * bits)
        symbols[at : at + size] = flat.reshape(size, bits).astype(np.int32) @ weights
    return symbols


def write_symbols(writer: Writer, symbols: Symbols, alphabet: int) -> None:
    """Append symbols by the smaller coder; the reader must know how many they are.

    Args:
        writer: receives the bytes.
        symbols: integers in ``[0, alphabet)``, shape (count,).
        alphabet: the number of different symbols, at least 2.
    """
    bits = (alphabet - 1).bit_length()
    histogram = np.bincount(symbols, minlength=alphabet)
    if symbols.size:
        encoder = RangeWriter()
        encoder.put(symbols, categorical(histogram))
        table = Writer()
        for count in histogram:
            table.varint(int(count))
        coded = table.getvalue() + encoder.getvalue()
        if len(coded) < (symbols.size * bits + 7) // 8:
            writer.u8(RANGE)
            writer.stream(coded)
            return
    writer.u8(PACKED)
    writer.stream(pack_bits(symbols, bits))


def read_symbols(reader: Reader, count: int, alphabet: int) -> Symbols:
    """Read what ``write_symbols`` wrote.

    Args:
        reader: stands before the coder byte.
        count: the number of symbols.
        alphabet: the number of different symbols.

    Returns:
        The symbols, int32, shape (count,).

    Raises:
        PayloadError: the stream does not decode to ``count`` symbols of the alphabet, or to other ones than its
            histogram says, or goes on after them.
    """
    coder = reader.u8()
    data = reader.stream()
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
    decoder = RangeReader(table.rest())
    symbols = decoder.get(categorical(histogram), count)
    if (np.bincount(symbols, minlength=alphabet) != histogram).any():
        raise PayloadError("section: histogram: is not that of the symbols")
    decoder.finish()
    return symbols
