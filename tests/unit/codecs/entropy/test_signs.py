"""Signs: both coders' round trips, choice of coder, size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy import signs as module
from fedcompress.codecs.entropy.signs import AGREEMENT, PACKED, read_signs, write_signs
from fedcompress.codecs.entropy.symbols import pack_bits
from fedcompress.errors import PayloadError

SHAPES = st.lists(st.lists(st.integers(0, 12), max_size=3).map(tuple) | st.tuples(st.integers(0, 200)), max_size=5)
Drawn = tuple[list[np.ndarray], list[Support]]


def drawn(shapes: list[tuple[int, ...]], seed: int) -> Drawn:
    """Some tensors whole, some in part; some like outer products, some random, some all alike."""
    generator = np.random.default_rng(seed)
    negative, places = [], []
    for shape in shapes:
        size = int(np.prod(shape))
        positions = None
        if generator.random() < 0.7:
            positions = np.flatnonzero(generator.random(size) < generator.choice([0.0, 0.1, 0.6, 1.0]))
        values = generator.standard_normal(shape)
        match int(generator.integers(3)):
            case 0 if len(shape) > 1:
                values = 0.4 * values + generator.standard_normal(shape[-1])
                values = values * generator.choice([-1, 1], (shape[0], *[1] * (len(shape) - 1)))
            case 1:
                values = np.abs(values)
        flat = np.asarray(values).reshape(-1) < 0
        negative.append(flat if positions is None else flat[positions])
        places.append(Support(shape, positions))
    return negative, places


def again(data: bytes, places: list[Support], version: int = 2) -> list[np.ndarray]:
    reader = Reader(data, version)
    found = read_signs(reader, places)
    reader.finish()
    return found


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(a.dtype == np.bool_ and np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def agreed(negative: list[np.ndarray], places: list[Support]) -> bytes:
    writer = Writer()
    writer.u8(AGREEMENT)
    writer.stream(module._write_agreement(negative, places))
    return writer.getvalue()


@settings(max_examples=150, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 10_000))
def test_both_coders_round_trip(shapes: list[tuple[int, ...]], seed: int) -> None:
    negative, places = drawn(shapes, seed)
    flat = np.concatenate([*negative, np.zeros(0, np.bool_)])
    packed = bytes([PACKED]) + pack_bits(flat, 1)
    assert same(again(packed, places), negative)
    assert same(again(packed[1:], places, version=1), negative), "version 1 had no coder byte"
    data = agreed(negative, places)
    assert same(again(data, places), negative)
    assert data == agreed(negative, places)
    writer = Writer()
    write_signs(writer, negative, places)
    assert same(again(writer.getvalue(), places), negative)
    assert writer.getvalue() in (packed, data)
    assert len(writer.getvalue()) <= len(packed) + 2


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_outer_products_take_few_bits(turned: bool, density: float) -> None:
    generator = np.random.default_rng(0)
    values = np.multiply.outer(generator.standard_normal(16), generator.standard_normal(600))
    sent = generator.random(600) < density
    where = np.broadcast_to(sent, values.shape)
    if turned:
        values, where = values.T, where.T
    positions = np.flatnonzero(where.ravel())
    negative, places = [values.ravel()[positions] < 0], [Support(values.shape, positions)]
    writer = Writer()
    write_signs(writer, negative, places)
    assert writer.getvalue()[0] == AGREEMENT
    assert same(again(writer.getvalue(), places), negative)
    assert 8 * len(writer.getvalue()) < 0.25 * positions.size + 100


def test_random_signs_are_packed() -> None:
    negative = [np.random.default_rng(0).random(5000) < 0.5]
    places = [Support((50, 100))]
    writer = Writer()
    write_signs(writer, negative, places)
    assert writer.getvalue() == bytes([PACKED]) + pack_bits(negative[0], 1)


def test_no_signs_at_all() -> None:
    for places in ([], [Support((0, 4))], [Support((3,), np.zeros(0, np.int64))]):
        writer = Writer()
        write_signs(writer, [np.zeros(0, np.bool_) for _ in places], places)
        assert writer.getvalue() == bytes([PACKED])
        assert same(again(writer.getvalue(), places), [np.zeros(0, np.bool_) for _ in places])


@pytest.mark.parametrize("coder", [2, 255])
def test_unknown_coders(coder: int) -> None:
    with pytest.raises(PayloadError, match=f"coder: {coder}: must be 0 or 1"):
        read_signs(Reader(bytes([coder, 0])), [Support((3,))])
