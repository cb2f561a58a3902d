"""Bases that follow from a seed and a name."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.codecs import CodecSpec
from fedcompress.numerics.seeded_bases import basis_of, expand, project, shared_seed
from fedcompress.pipeline.states import encode_delta
from fedcompress.pipeline.updates import encode_update
from fedcompress.types import zeros
from fedcompress.wire import Kind
from tests.unit.slices import LAYOUT, equal, header

pytestmark = pytest.mark.usefixtures("small_slices")


@pytest.mark.parametrize("kind", ["random", "dct"])
def test_bases_are_of_a_seed_and_a_name(kind: str) -> None:
    seed = shared_seed("run", 3)
    basis = basis_of(kind, 64, 8, seed, "q")
    assert np.array_equal(basis, basis_of(kind, 64, 8, shared_seed("run", 3), "q"))
    for other in ((shared_seed("run", 4), "q"), (shared_seed("other", 3), "q"), (seed, "k")):
        assert not np.array_equal(basis, basis_of(kind, 64, 8, *other))
    assert np.allclose(np.square(basis).sum(1), 1, atol=1e-6)
    matrix = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    inside = expand(matrix, basis)
    assert np.allclose(inside, matrix @ basis, atol=1e-5)
    assert np.allclose(project(inside, basis), matrix, atol=1e-5)


def test_the_mean_of_coefficients_is_the_mean_of_updates() -> None:
    """Two sites that trained in the round's basis, a server, and a downlink of coefficients: nothing is lost."""
    spec, seed = CodecSpec.parse("subspace(rank=3)"), shared_seed("r", 1)
    sites = []
    for number in (1, 2):
        update = zeros(LAYOUT)
        for tensor in ("embed", "q", "up"):
            shape = LAYOUT.by_name[tensor].shape
            coefficients = np.random.default_rng(number).normal(size=(shape[0], 3)).astype(np.float32)
            update[tensor] = expand(coefficients, basis_of("random", shape[1], 3, seed, tensor))
        data, decoded = encode_update(update, LAYOUT, spec, header(site=f"s{number}"))
        assert all(np.allclose(decoded[n], update[n], atol=1e-5) for n in update)
        assert len(data) < 4 * 3 * (50 + 24 + 7) + 4 * 13 + 400
        sites.append(update)
    mean = {n: (sites[0][n] + sites[1][n]) / np.float32(2) for n in sites[0]}
    _, change, reached = encode_delta(mean, zeros(LAYOUT), LAYOUT, spec, header(Kind.DELTA))
    assert all(np.allclose(change[n], mean[n], atol=1e-5) for n in mean)
    assert equal(reached, change)
