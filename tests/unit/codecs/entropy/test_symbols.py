"""Streams of bits and symbols: round trips, choice of coder, what is refused, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.range_coder import bernoulli
from fedcompress.codecs.entropy.symbols import CHUNK, PACKED, RANGE, pack_bits, read_symbols, unpack_bits, write_symbols
from fedcompress.errors import PayloadError


def written(method: str, *values: object) -> bytes:
    writer = Writer()
    for value in values:
        getattr(writer, method)(value)
    return writer.getvalue()


@given(st.integers(0, (1 << 63) - 1))
def test_varints_round_trip_in_their_shortest_form(value: int) -> None:
    data = written("varint", value)
    reader = Reader(data)
    assert reader.varint() == value
    reader.finish()
    assert len(data) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x01", b"\x80", b""])
def test_bad_varints(data: bytes) -> None:
    with pytest.raises(PayloadError):
        Reader(data).varint()


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(1, 8), seed=st.integers(0, 99), count=st.integers(0, 40))
def test_packed_bits_equal_a_string_of_digits(bits: int, seed: int, count: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.int32)
    digits = "".join(f"{s:0{bits}b}" for s in symbols)
    digits += "0" * (-len(digits) % 8)
    data = bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
    assert pack_bits(symbols, bits) == data
    assert (unpack_bits(data, count, bits) == symbols).all()


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_leave_no_seam(bits: int, count: int) -> None:
    symbols = np.random.default_rng(bits).integers(0, 1 << bits, count).astype(np.int32)
    data = pack_bits(symbols, bits)
    whole = np.packbits((symbols[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).ravel())
    assert data == whole.tobytes()
    assert (unpack_bits(data, count, bits) == symbols).all()


@pytest.mark.parametrize("last", [0, 5])
def test_padding_must_be_zero(last: int) -> None:
    data = bytearray(pack_bits(np.zeros(11, np.int32), 1))
    data[-1] |= 1 << last - 1 if last else 1
    with pytest.raises(PayloadError, match="padding"):
        unpack_bits(bytes(data), 11, 1)


def test_symbols_take_few_bytes_of_memory() -> None:
    """Spreading 8 bits of each of a million symbols at once would take 64 bytes a symbol."""
    symbols = np.random.default_rng(0).integers(0, 255, 1_000_000).astype(np.int32)
    tracemalloc.start()
    writer = Writer()
    write_symbols(writer, symbols, 255)
    again = read_symbols(Reader(writer.getvalue()), symbols.size, 255)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (again == symbols).all()
    assert peak < 20 * symbols.size


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 600), alphabet=st.sampled_from([3, 7, 15, 255]))
def test_symbols_round_trip(seed: int, count: int, alphabet: int) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(alphabet, 0.05))
    symbols = generator.choice(alphabet, count, p=shares).astype(np.int32)
    writer = Writer()
    write_symbols(writer, symbols, alphabet)
    reader = Reader(writer.getvalue())
    assert (read_symbols(reader, count, alphabet) == symbols).all()
    reader.finish()
    packed = (count * (alphabet - 1).bit_length() + 7) // 8
    assert len(writer.getvalue()) <= 1 + len(written("varint", packed)) + packed


@pytest.mark.parametrize("share", [0, 1])
def test_the_smaller_coder_is_taken(share: int) -> None:
    """Skewed symbols are coded; few, even ones are packed."""
    generator = np.random.default_rng(0)
    symbols = generator.choice(3, 2000, p=([0.98, 0.01, 0.01], [1 / 3] * 3)[share]).astype(np.int32)
    writer = Writer()
    write_symbols(writer, symbols if not share else symbols[:8], 3)
    assert Reader(writer.getvalue()).u8() == (RANGE, PACKED)[share]


def coded(symbols: np.ndarray, alphabet: int) -> tuple[list[int], bytes]:
    """Histogram and words of a range stream."""
    writer = Writer()
    write_symbols(writer, symbols, alphabet)
    reader = Reader(writer.getvalue())
    assert reader.u8() == RANGE
    table = Reader(reader.stream())
    return [table.varint() for _ in range(alphabet)], table.rest()


SYMBOLS = np.random.default_rng(3).choice(3, 500, p=[0.9, 0.06, 0.04]).astype(np.int32)
HISTOGRAM, WORDS = coded(SYMBOLS, 3)


def stream_of(histogram: list[int], words: bytes) -> bytes:
    table = written("varint", *histogram)
    return bytes([RANGE]) + written("stream", table + words)


def test_the_honest_stream_is_read() -> None:
    assert (read_symbols(Reader(stream_of(HISTOGRAM, WORDS)), 500, 3) == SYMBOLS).all()


@pytest.mark.parametrize(
    ("histogram", "words", "message"),
    [
        ([HISTOGRAM[0] + 1, *HISTOGRAM[1:]], WORDS, "symbols: must be 500"),
        ([500, 0, 0], WORDS, "goes on"),
        ([HISTOGRAM[0] - 1, HISTOGRAM[1] + 1, HISTOGRAM[2]], WORDS, "is not that of the symbols"),
        ([1 << 62, 1 << 62, 0], WORDS, "must be 500"),
        (HISTOGRAM, WORDS + b"\0" * 8, "goes on"),
        (HISTOGRAM, WORDS + b"\xff" * 400, "goes on"),
        (HISTOGRAM, WORDS + b"\0", "multiple of 4"),
    ],
    ids=["too-many", "one-symbol-only", "shifted", "huge", "zero-words", "many-words", "odd-byte"],
)
def test_symbol_streams_that_lie(histogram: list[int], words: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        read_symbols(Reader(stream_of(histogram, words)), 500, 3)


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.sampled_from([0, 1, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF), max_size=8), k=st.integers(1, 99)
)
def test_garbage_words_are_refused_or_decoded(words: list[int], k: int) -> None:
    """No panic of the coder passes: anything but PayloadError fails this test."""
    data = np.array(words, "<u4").tobytes()
    try:
        symbols = read_symbols(Reader(stream_of([k, 100 - k, 0], data)), 100, 3)
    except PayloadError:
        return
    assert np.bincount(symbols, minlength=3).tolist() == [k, 100 - k, 0]


def test_models_take_the_rarest_symbol() -> None:
    """Below one in 2^24 the fixed-point model still has a place for it."""
    assert bernoulli(1, 1 << 40) is not None
    symbols = np.zeros(200_000, np.int32)
    symbols[77_777] = 2
    histogram, words = coded(symbols, 3)
    assert (read_symbols(Reader(stream_of(histogram, words)), symbols.size, 3) == symbols).all()
