"""Our streams decode with a decoder that was written from the specification in protos/README.md."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.adapters import seeded_init
from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.positions import _write_columns, _write_gaps, read_positions
from fedcompress.codecs.entropy.symbols import RANGE, read_symbols, write_symbols
from fedcompress.types import Layout, TensorSpec
from tests.unit.codecs import range_reference as reference
from tests.unit.codecs.version1 import write_masks


@pytest.mark.parametrize("seed", range(20))
def test_masks_of_version_1(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = [int(n) for n in generator.integers(1, 900, 5)]
    masks = [generator.random(n) < generator.uniform(0, 0.3) for n in sizes]
    writer = Writer()
    write_masks(writer, masks)
    again = read_positions(Reader(writer.getvalue(), version=1), [(n,) for n in sizes])
    assert all((np.flatnonzero(m) == a.positions).all() for m, a in zip(masks, again, strict=True))
    reader = Reader(writer.getvalue())
    counts = [reader.varint() for _ in sizes]
    if reader.u8() != RANGE:
        return
    decoder = reference.RangeDecoder(reader.stream())
    for mask, size, count in zip(masks, sizes, counts, strict=True):
        if 0 < count < size:
            assert list(decoder.symbols(reference.bernoulli(count, size), size)) == mask.astype(int).tolist()
    assert decoder.at_end()


@pytest.mark.parametrize("seed", range(12))
def test_gaps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = [int(n) for n in generator.integers(1, 3000, 5)]
    places = [np.flatnonzero(generator.random(n) < generator.uniform(0, 0.3)) for n in sizes]
    reader = Reader(_write_gaps([Support((n,), p) for n, p in zip(sizes, places, strict=True)]))
    counts = [reader.varint() for _ in sizes]
    decoder = reference.RangeDecoder(reader.stream())
    for size, count, expected in zip(sizes, counts, places, strict=True):
        if 0 < count < size:
            assert reference.gap_positions(decoder, count, size) == expected.tolist()
    assert decoder.at_end()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (50,)])
def test_columns(seed: int, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(seed)
    masks = [generator.random(shape) < generator.random(shape[-1]) * 0.5 for _ in range(3)]
    reader = Reader(_write_columns([Support(m.shape, np.flatnonzero(m)) for m in masks]))
    decoder, model = reference.RangeDecoder(reader.stream()), reference.ColumnModel()
    for mask in masks:
        matrix = mask.reshape(1, -1) if mask.ndim == 1 else mask.T if mask.shape[0] > mask.shape[1] else mask
        assert model.matrix(decoder, *matrix.shape) == matrix.astype(int).tolist()
    assert decoder.at_end()


@pytest.mark.parametrize("alphabet", [3, 7, 15, 127, 255])
@pytest.mark.parametrize("seed", range(4))
def test_symbols(alphabet: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.ones(alphabet) * 0.3)
    symbols = generator.choice(alphabet, size=2000, p=shares).astype(np.int32)
    writer = Writer()
    write_symbols(writer, symbols, alphabet)
    assert (read_symbols(Reader(writer.getvalue()), symbols.size, alphabet) == symbols).all()
    reader = Reader(writer.getvalue())
    assert reader.u8() == RANGE
    table = Reader(reader.stream())
    histogram = [table.varint() for _ in range(alphabet)]
    decoder = reference.RangeDecoder(table.rest())
    assert list(decoder.symbols(reference.categorical(histogram), symbols.size)) == symbols.tolist()
    assert decoder.at_end()


def outcome(words: np.ndarray, model: object, cumulative: list[int], count: int) -> tuple[object, object]:
    """What constriction and the specification make of a stream: symbols and end, or None where it is refused."""
    decoder = constriction.stream.queue.RangeDecoder(words)
    try:
        theirs: object = (np.asarray(decoder.decode(model, count)).tolist(), decoder.maybe_exhausted())
    except AssertionError:
        theirs = None
    twin = reference.RangeDecoder(words.astype("<u4").tobytes())
    try:
        ours: object = (list(twin.symbols(cumulative, count)), twin.at_end())
    except ValueError:
        ours = None
    return theirs, ours


@settings(max_examples=400, deadline=None)
@given(
    words=st.lists(st.sampled_from([0, 1, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF), max_size=8),
    size=st.integers(2, 1 << 40),
    share=st.floats(0, 1),
    histogram=st.lists(st.integers(0, 1000), min_size=3, max_size=20),
)
def test_garbage_is_the_same_garbage(words: list[int], size: int, share: float, histogram: list[int]) -> None:
    stream, count = np.array(words, np.uint32), min(max(int(share * size), 1), size - 1)
    bernoulli = constriction.stream.model.Bernoulli(count / size, perfect=False)
    theirs, ours = outcome(stream, bernoulli, reference.bernoulli(count, size), 60)
    assert theirs == ours
    histogram[0] += 1
    categorical = constriction.stream.model.Categorical(np.array(histogram) / sum(histogram), perfect=False)
    theirs, ours = outcome(stream, categorical, reference.categorical(histogram), 60)
    assert theirs == ours


def test_seeded_start() -> None:
    layout = Layout((TensorSpec(name="m.lora_A.weight", shape=(3, 7), group="lora_a"),))
    ours = seeded_init(layout, 11)["m.lora_A.weight"].ravel()
    expected = np.array(reference.seeded_start(11, "m.lora_A.weight", 21, 7), np.float64).astype(np.float32)
    assert ours.tobytes() == expected.tobytes()
