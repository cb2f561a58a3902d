"""Selection against a slow twin, with ties and empty tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.codecs.selectors.topk import TopK, find_largest
from tests.unit.codecs import codec_reference as reference

# few distinct values, so that ties are common
TENSORS = st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-41, 2.5]), max_size=12), max_size=5)


def where(mask: list[bool]) -> list[int]:
    return [i for i, kept in enumerate(mask) if kept]


DENSITIES = st.floats(0.001, 1.0)


@settings(max_examples=200, deadline=None)
@given(tensors=TENSORS, density=DENSITIES)
def test_by_tensor_equals_the_reference(tensors: list[list[float]], density: float) -> None:
    places = TopK(density=density).select([np.array(t, np.float32) for t in tensors])
    assert [p.tolist() for p in places] == [where(reference.topk(t, density)) for t in tensors]


@settings(max_examples=200, deadline=None)
@given(tensors=TENSORS, density=DENSITIES)
def test_global_equals_the_reference(tensors: list[list[float]], density: float) -> None:
    places = TopK(density=density, scope="global").select([np.array(t, np.float32) for t in tensors])
    assert [p.tolist() for p in places] == [where(m) for m in reference.topk_global(tensors, density)]


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("density", [1e-320, 0.001, 0.5, 1.0])
def test_the_law_counts_exactly(scope: str, density: float) -> None:
    values = [np.ones(n, np.float32) for n in (0, 1, 7, 100)]
    kept = [p.size for p in TopK(density=density, scope=scope).select(values)]
    if scope == "tensor":
        assert kept == [math.ceil(density * v.size) for v in values]
    else:
        assert sum(kept) == math.ceil(density * 108)


def test_a_decimal_density_keeps_what_it_says() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point."""
    (places,) = TopK(density=0.07).select([np.arange(100, dtype=np.float32)])
    assert places.tolist() == list(range(93, 100))


@pytest.mark.parametrize("kind", ["normal", "few values", "one large", "zeros"])
@pytest.mark.parametrize("count", [1, 1000, 150_000, 699_999])
def test_large_tensors_take_the_sampled_path(kind: str, count: int) -> None:
    """The threshold that is guessed from a sample changes nothing."""
    draw = np.random.default_rng(1)
    flat = {
        "normal": draw.standard_normal(700_000),
        "few values": draw.integers(-3, 4, 700_000),
        "one large": np.eye(1, 700_000, 31_337)[0],
        "zeros": np.zeros(700_000),
    }[kind].astype(np.float32)
    found = find_largest([flat[:1], flat[1:600_000], flat[600_000:]], count)
    order = np.lexsort((np.arange(flat.size), -np.abs(flat)))
    together = np.concatenate([p + at for p, at in zip(found, (0, 1, 600_000), strict=True)])
    assert (together == np.sort(order[:count])).all()


def test_counts_out_of_range() -> None:
    values = np.arange(3, dtype=np.float32)
    assert find_largest([values], 9)[0].tolist() == [0, 1, 2]
    assert not find_largest([values], 0)[0].size
    assert not find_largest([values], -1)[0].size
