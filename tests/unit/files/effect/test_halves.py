"""Components of which only one factor would be sent are left out, and their bits are used elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.files.effect.halves import encode_whole_components
from fedcompress.files.effect.units import Unit
from fedcompress.types import Layout, Tensors, TensorSpec

SPEC = CodecSpec.parse("transform(budget=0.2)")


def count_halves(tensors: Tensors, experts: int) -> int:
    rank = tensors["a"].shape[0] // experts
    sent_a = tensors["a"].any(1).reshape(experts, rank)
    sent_b = tensors["b"].any(0).reshape(rank, experts)
    return int((sent_a != sent_b.T).sum())


@pytest.mark.parametrize("experts", [1, 4])
def test_no_component_is_sent_by_half(experts: int) -> None:
    draw = np.random.default_rng(0)
    rank, columns, rows = 8, 128, 1024
    sizes = 0.8 ** np.arange(rank * experts).reshape(rank, experts)
    a = draw.standard_normal((experts, rank, columns)) * sizes.T[:, :, None] / np.sqrt(columns)
    b = draw.standard_normal((rows, rank, experts)) * sizes / np.sqrt(rows)
    tensors = {"a": a.reshape(-1, columns).astype(np.float32), "b": b.reshape(rows, -1).astype(np.float32)}
    copies = {n: v.copy() for n, v in tensors.items()}
    layout = Layout(tuple(TensorSpec(name=n, shape=v.shape) for n, v in tensors.items()))
    unit = Unit(module="m", legs=(("b", "a"),), experts=experts)

    def encode(values: Tensors) -> tuple[bytes, ...]:
        return encode_sections(SPEC, layout, values)

    def decode(sections: tuple[bytes, ...]) -> Tensors:
        return decode_sections(SPEC, layout, sections)

    plain = decode(encode(tensors))
    found = decode(encode_whole_components(encode, decode, [unit], tensors))
    assert count_halves(plain, experts) > count_halves(found, experts) == 0
    assert all(np.array_equal(copies[n], tensors[n]) for n in tensors)
    assert encode_whole_components(encode, decode, [], tensors) == encode(tensors)
