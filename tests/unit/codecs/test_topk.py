"""Selection against a slow twin, with ties and empty tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.topk import TopK, largest
from tests.unit.codecs import codec_reference as reference

# few distinct values, so that ties are common
TENSORS = st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-41, 2.5]), max_size=12), max_size=5)
DENSITIES = st.floats(0.001, 1.0)


@settings(max_examples=200, deadline=None)
@given(tensors=TENSORS, density=DENSITIES)
def test_by_tensor_equals_the_reference(tensors: list[list[float]], density: float) -> None:
    masks = TopK(density=density).select([np.array(t, np.float32) for t in tensors])
    assert [m.tolist() for m in masks] == [reference.topk(t, density) for t in tensors]


@settings(max_examples=200, deadline=None)
@given(tensors=TENSORS, density=DENSITIES)
def test_global_equals_the_reference(tensors: list[list[float]], density: float) -> None:
    masks = TopK(density=density, scope="global").select([np.array(t, np.float32) for t in tensors])
    assert [m.tolist() for m in masks] == reference.topk_global(tensors, density)


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("density", [1e-320, 0.001, 0.5, 1.0])
def test_the_law_counts_exactly(scope: str, density: float) -> None:
    values = [np.ones(n, np.float32) for n in (0, 1, 7, 100)]
    masks = TopK(density=density, scope=scope).select(values)
    kept = [int(m.sum()) for m in masks]
    if scope == "tensor":
        assert kept == [math.ceil(density * v.size) for v in values]
    else:
        assert sum(kept) == math.ceil(density * 108)


def test_counts_out_of_range() -> None:
    values = np.arange(3, dtype=np.float32)
    assert largest(values, 9).all()
    assert not largest(values, 0).any()
    assert not largest(values, -1).any()
