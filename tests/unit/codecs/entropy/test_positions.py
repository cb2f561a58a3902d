"""Positions and signs through every coder: round trips, choice of coder, what is refused, sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs import CodecSpec, encode_sections
from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy import positions as coders
from fedcompress.codecs.entropy.positions import COLUMNS, GAPS, PACKED, ROWS, read_positions, write_positions
from fedcompress.codecs.entropy.signs import AGREEMENT, read_signs, write_signs
from fedcompress.codecs.entropy.signs import PACKED as PACKED_SIGNS
from fedcompress.errors import PayloadError
from fedcompress.types import Layout, TensorSpec
from tests.unit.codecs.version1 import write_masks

SHAPES = st.lists(st.sampled_from([(), (0, 3), (1,), (300,), (8, 50), (50, 8), (3, 4, 5)]), max_size=5)


def write_rows(places: list[Support]) -> bytes:
    return coders._write_gaps([row for p in places for row in coders._split_rows(p)])


WRITERS = {GAPS: coders._write_gaps, PACKED: coders._write_packed, COLUMNS: coders._write_columns, ROWS: write_rows}


def draw(shapes: list[tuple[int, ...]], seed: int, density: float) -> list[Support]:
    generator = np.random.default_rng(seed)
    out = []
    for shape in shapes:
        share = density * generator.random()
        out.append(Support(shape, np.flatnonzero(generator.random(math.prod(shape)) < share)))
    return out


def same(left: list[Support], right: list[Support]) -> bool:
    return [(p.shape, p.positions.tolist()) for p in left] == [(p.shape, p.positions.tolist()) for p in right]


@settings(max_examples=150, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 10_000), density=st.sampled_from([0, 0.02, 0.3, 1, 2]))
def test_every_coder_round_trips(shapes: list[tuple[int, ...]], seed: int, density: float) -> None:
    places = draw(shapes, seed, density)
    sizes = {}
    for coder, write in WRITERS.items():
        data = write(places)
        sizes[coder] = len(data)
        reader = Reader(bytes([coder]) + data)
        assert same(read_positions(reader, shapes), places)
        reader.finish()
    writer = Writer()
    write_positions(writer, places)
    assert len(writer.getvalue()) <= 1 + min(sizes[GAPS], sizes[COLUMNS])
    assert same(read_positions(Reader(writer.getvalue()), shapes), places)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(0, 400), max_size=6), density=st.floats(0, 1))
def test_version_1_is_still_read(seed: int, sizes: list[int], density: float) -> None:
    generator = np.random.default_rng(seed)
    masks = [generator.random(n) < density * generator.random() for n in sizes]
    writer = Writer()
    write_masks(writer, masks)
    reader = Reader(writer.getvalue(), version=1)
    again = read_positions(reader, [(n,) for n in sizes])
    reader.finish()
    assert [p.positions.tolist() for p in again] == [np.flatnonzero(m).tolist() for m in masks]


@settings(max_examples=150, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 10_000), density=st.sampled_from([0, 0.3, 2]), rank_one=st.booleans())
def test_signs_round_trip(shapes: list[tuple[int, ...]], seed: int, density: float, rank_one: bool) -> None:
    places, generator = draw(shapes, seed, density), np.random.default_rng(seed)
    negative = []
    for place in places:
        flat = generator.random(place.numel) < 0.5
        if rank_one and len(place.shape) == 2:
            left, right = (generator.random(n) < 0.5 for n in place.shape)
            flat = (left[:, None] ^ right).ravel()
        negative.append(flat[place.positions])
    for places_, signs in ((places, negative), ([Support(p.shape) for p in places], None)):
        signs = signs or [generator.random(p.numel) < 0.5 for p in places_]
        writer = Writer()
        write_signs(writer, signs, places_)
        reader = Reader(writer.getvalue())
        assert [s.tolist() for s in read_signs(reader, places_)] == [s.tolist() for s in signs]
        reader.finish()


def test_coders_are_chosen_for_what_they_are_good_at() -> None:
    generator = np.random.default_rng(0)
    rows = generator.random((16, 400)) < np.where(np.arange(400) % 10 == 0, 0.9, 0.01)  # the same columns in all rows
    uneven = generator.random((16, 400)) < np.geomspace(0.001, 0.5, 16)[::-1, None]
    for mask, coder in ((rows, COLUMNS), (generator.random((1, 6400)) < 0.02, GAPS), (uneven[::3], ROWS)):
        writer = Writer()
        write_positions(writer, [Support(mask.shape, np.flatnonzero(mask))])
        assert writer.getvalue()[0] == coder
    signs = np.outer(generator.random(16) < 0.5, np.ones(400, bool)) ^ (generator.random(400) < 0.5)
    for negative, coder in ((signs, AGREEMENT), (generator.random((16, 400)) < 0.5, PACKED_SIGNS)):
        writer = Writer()
        write_signs(writer, [negative.ravel()], [Support((16, 400))])
        assert writer.getvalue()[0] == coder


@pytest.mark.parametrize(
    "data",
    [
        b"\x01\x05\x00",  # the coder of version 1
        b"\x05\x05\x00",
        b"\x02\x65\x00",  # 101 entries of 100
        b"\x02\x05\x03abc",
        b"\x00\x05\x0d" + b"\xff" * 12 + b"\xf0",  # 100 ones, 5 promised
        b"\x00\x05\x0c" + b"\xff" * 12,
        b"\x03\x08" + b"\xff" * 8,
        b"\x02\x05\x40" + bytes(64),
        b"",
    ],
)
def test_masks_that_lie(data: bytes) -> None:
    def read() -> None:
        reader = Reader(data)
        read_positions(reader, [(100,)])
        reader.finish()

    with pytest.raises(PayloadError):
        read()


@settings(max_examples=400, deadline=None)
@given(
    coder=st.sampled_from([PACKED, GAPS, COLUMNS, ROWS, 9]),
    count=st.integers(0, 130),
    words=st.lists(st.sampled_from([0, 1, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF), max_size=8),
)
def test_garbage_is_refused_or_decodes(coder: int, count: int, words: list[int]) -> None:
    writer = Writer()
    writer.u8(coder)
    if coder != COLUMNS:
        writer.varint(count)
    writer.stream(np.array(words, "<u4").tobytes())
    try:
        (place,) = read_positions(Reader(writer.getvalue()), [(10, 10)])
    except PayloadError:
        return
    assert place.positions is not None
    assert (np.diff(place.positions) > 0).all()
    assert place.count == count or coder in (COLUMNS, ROWS)
    assert not place.count or 0 <= place.positions[0] <= place.positions[-1] < 100


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_random_signs_of_one_density_reach_the_entropy(density: float) -> None:
    """H(p) + p bits an entry, within half a per cent and 256 bytes."""
    size = 4_000_000
    layout = Layout((TensorSpec(name="w", shape=(size,)),))
    values = {"w": np.random.default_rng(0).standard_normal(size, np.float32)}
    (section,) = encode_sections(CodecSpec.parse(f"topk(density={density})|ternary"), layout, values)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert len(section) <= 1.005 * (entropy + density) * size / 8 + 256
