"""Factored sums against dense matrices."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.merging.lowrank import Term, dense_spectrum, distance, grams, inner, norm, spectrum, truncate


def dense(terms: list[Term], shape: tuple[int, int]) -> np.ndarray:
    return sum((t.weight * t.b.astype(np.float64) @ t.a for t in terms), np.zeros(shape))


@st.composite
def sums(draw: st.DrawFn) -> tuple[list[Term], tuple[int, int]]:
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    terms = []
    for rank in draw(st.lists(st.integers(0, 14), max_size=5)):
        scale = draw(st.sampled_from([0.0, 1e-4, 1.0, 1e3]))
        b, a = generator.standard_normal((shape[0], rank)), generator.standard_normal((rank, shape[1]))
        dtype = draw(st.sampled_from([np.float32, np.float64]))
        terms.append(Term(draw(st.sampled_from([0.0, 0.3, -1.0, 2.0])), (scale * b).astype(dtype), a.astype(dtype)))
    return terms, shape


@settings(deadline=None, max_examples=150)
@given(case=sums(), rank=st.integers(0, 14))
def test_truncation_is_that_of_the_dense_svd(case: tuple[list[Term], tuple[int, int]], rank: int) -> None:
    terms, shape = case
    matrix = dense(terms, shape)
    whole = np.linalg.norm(matrix)
    _u, s, _v = np.linalg.svd(matrix, full_matrices=False)
    found = truncate(iter(terms), shape, rank)
    assert found.b.shape == (shape[0], rank)
    assert found.a.shape == (rank, shape[1])
    size = found.values.size
    assert np.allclose(found.values, s[:size], atol=1e-11 * max(whole, 1e-30), rtol=0)
    assert np.linalg.norm(s[size:]) <= 1e-11 * whole
    best = np.linalg.norm(s[rank:])
    lost = np.linalg.norm(found.b @ found.a - matrix)
    assert lost == pytest.approx(best, abs=1e-11 * max(whole, 1e-30))
    assert found.error * whole == pytest.approx(best, abs=1e-11 * max(whole, 1e-30))
    assert np.allclose(np.linalg.norm(found.b, axis=0), np.linalg.norm(found.a, axis=1), rtol=1e-9)  # balanced


@settings(deadline=None, max_examples=100)
@given(case=sums(), other=sums())
def test_norms_and_inner_products(
    case: tuple[list[Term], tuple[int, int]], other: tuple[list[Term], tuple[int, int]]
) -> None:
    terms, shape = case
    assert norm(terms, shape) == pytest.approx(np.linalg.norm(dense(terms, shape)), rel=1e-10, abs=1e-12)
    products = [dense([t], shape).ravel() for t in terms]
    expected = np.array([[x @ y for y in products] for x in products]).reshape(len(terms), len(terms))
    scale = max([1.0, *(float(x @ x) for x in products)])
    assert np.allclose(grams(terms), expected, atol=1e-11 * scale)
    half = terms[: len(terms) // 2]
    assert inner(terms, half) == pytest.approx(
        float(np.vdot(dense(terms, shape), dense(half, shape))), rel=1e-9, abs=1e-11 * scale
    )
    b, a = np.ones((shape[0], 1)), np.ones((1, shape[1]))
    off, whole = np.linalg.norm(b @ a - dense(terms, shape)), np.linalg.norm(dense(terms, shape))
    assert distance(terms, b, a) == (pytest.approx(off / whole, rel=1e-9, abs=1e-12) if whole else float("inf"))


def test_cancellation_is_exact() -> None:
    """A sum of inner products would report 1e-8 of the norm."""
    generator = np.random.default_rng(0)
    b, a = generator.standard_normal((50, 4)), generator.standard_normal((4, 60))
    assert distance([Term(1.0, b, a)], b, a) < 1e-14
    assert distance([], np.zeros((5, 2)), np.zeros((2, 6))) == 0


def test_rank_and_energy() -> None:
    values = np.array([4.0, 2.0, 1.0, 1e-17])
    matrix = np.zeros((6, 4))
    np.fill_diagonal(matrix, values)
    found = dense_spectrum(matrix)
    assert found.rank == 3
    # energies 16, 20, 21 of 21
    assert [found.rank_for(e) for e in (0.5, 16 / 21 - 1e-9, 16 / 21 + 1e-9, 20 / 21 + 1e-9, 1.0)] == [1, 1, 2, 3, 3]
    assert dense_spectrum(np.zeros((3, 3))).rank == 0
    assert dense_spectrum(np.zeros((3, 3))).rank_for(0.9) == 0


def test_signs_do_not_depend_on_the_order_of_terms() -> None:
    generator = np.random.default_rng(1)
    terms = [Term(0.5, generator.standard_normal((20, 3)), generator.standard_normal((3, 30))) for _ in range(4)]
    one, two = truncate(terms, (20, 30), 6), truncate(terms[::-1], (20, 30), 6)
    assert np.allclose(one.b, two.b)
    assert np.allclose(one.a, two.a)


def test_many_terms_in_bounded_memory() -> None:
    """Three hundred terms of rank 8 and 300 x 200: their factors are 10 MB, the matrix is 0.5."""
    shape, generator = (300, 200), np.random.default_rng(2)
    b, a = generator.standard_normal((300, 8)), generator.standard_normal((8, 200))

    def terms() -> object:
        for i in range(300):
            yield Term(1 / 300, np.roll(b, i, axis=0), np.roll(a, i, axis=1))

    tracemalloc.start()
    found = spectrum(terms(), shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
    matrix = sum(np.roll(b, i, axis=0) @ np.roll(a, i, axis=1) for i in range(300)) / 300
    assert np.allclose(found.u * found.values @ found.v, matrix)
