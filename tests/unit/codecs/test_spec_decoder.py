"""Our streams decode with a decoder that was written from the specification in protos/README.md."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.adapters import seeded_init
from fedcompress.codecs.base import Reader, Writer
from fedcompress.codecs.entropy import RANGE, read_masks, read_symbols, write_masks, write_symbols
from fedcompress.types import Layout, TensorSpec
from tests.unit.codecs import range_reference as reference


@pytest.mark.parametrize("seed", range(20))
def test_masks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = [int(n) for n in generator.integers(1, 900, 5)]
    masks = [generator.random(n) < generator.uniform(0, 0.3) for n in sizes]
    writer = Writer()
    write_masks(writer, masks)
    again = read_masks(Reader(writer.getvalue()), sizes)
    assert all((m == a).all() for m, a in zip(masks, again, strict=True))
    reader = Reader(writer.getvalue())
    counts = [reader.varint() for _ in sizes]
    if reader.u8() != RANGE:
        return
    decoder = reference.RangeDecoder(reader.stream())
    for mask, size, count in zip(masks, sizes, counts, strict=True):
        if 0 < count < size:
            assert list(decoder.symbols(reference.bernoulli(count, size), size)) == mask.astype(int).tolist()


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


def test_seeded_start() -> None:
    layout = Layout((TensorSpec(name="m.lora_A.weight", shape=(3, 7), group="lora_a"),))
    ours = seeded_init(layout, 11)["m.lora_A.weight"].ravel()
    expected = np.array(reference.seeded_start(11, "m.lora_A.weight", 21, 7), np.float64).astype(np.float32)
    assert ours.tobytes() == expected.tobytes()
