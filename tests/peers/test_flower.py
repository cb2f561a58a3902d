"""Flower's aggregation functions on sites of several tensors, as its strategies call them."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.server.strategy.aggregate import (
    aggregate,
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)

from fedcompress.errors import ConfigError
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.types import Layout, TensorSpec, zeros

LAYOUT = Layout((TensorSpec(name="a", shape=(3, 4)), TensorSpec(name="b", shape=(5,))))


def sites(count: int, seed: int = 0) -> list[tuple[list[np.ndarray], int]]:
    """Tensors and numbers of examples, as Flower has them; by norm, since Flower breaks ties by position."""
    generator = np.random.default_rng(seed)
    drawn = [[generator.standard_normal(t.shape).astype(np.float32) for t in LAYOUT.tensors] for _ in range(count)]
    drawn.sort(key=lambda tensors: sum(float(np.square(t.astype(np.float64)).sum()) for t in tensors))
    return [(tensors, 1 + i % 3) for i, tensors in enumerate(drawn)]


def merged(call: str, results: list[tuple[list[np.ndarray], int]], *, weighted: bool = False) -> list[np.ndarray]:
    held = InMemoryUpdates(LAYOUT, [{"a": t[0], "b": t[1]} for t, _ in results])
    weights = [float(n) if weighted else 1.0 for _, n in results]
    return list(Merger(rule=parse_rule(call), layout=LAYOUT).merge(zeros(LAYOUT), weights, held).values())


def close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_means_and_medians(count: int) -> None:
    results = sites(count)
    close(merged("mean", results, weighted=True), aggregate(results))
    close(merged("median", results), aggregate_median(results))


@pytest.mark.parametrize("count", [2, 5, 9, 10])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.34, 0.49])
def test_trimmed_means_of_whole_sites(count: int, share: float) -> None:
    results = sites(count)
    close(merged(f"trimmed-mean(beta={share},whole=true)", results), aggregate_trimmed_avg(results, share))


def test_trimmed_means_by_shares_drop_a_part_of_a_site() -> None:
    """Of five sites a tenth at either end is half a site: Flower drops none."""
    results = sites(5)
    close(merged("trimmed-mean(beta=0,whole=true)", results), aggregate_trimmed_avg(results, 0.1))
    by_share = merged("trimmed-mean(beta=0.1)", results)[0]
    ordered = np.sort(np.stack([t[0] for t, _ in results]), axis=0)
    np.testing.assert_allclose(by_share, (ordered[1:4].sum(0) + (ordered[0] + ordered[4]) / 2) / 4, rtol=1e-5)


@pytest.mark.parametrize(("count", "malicious"), [(5, 1), (7, 2), (9, 3), (6, 0)])
def test_krum(count: int, malicious: int) -> None:
    results = sites(count)
    close(merged(f"krum(malicious={malicious})", results), aggregate_krum(results, malicious, 0))
    call = f"multi-krum(malicious={malicious},kept=2)"
    close(merged(call, results, weighted=True), aggregate_krum(results, malicious, 2))


def test_krum_of_too_few_sites_says_how_many_it_needs() -> None:
    """Flower takes three sites with one malicious one; the paper needs five."""
    results = sites(3)
    assert len(aggregate_krum(results, 1, 0)) == 2
    with pytest.raises(ConfigError, match=r"rule.krum.malicious: 1: must be at most 0 with 3 sites .* = 5 sites"):
        merged("krum(malicious=1)", results)


@pytest.mark.parametrize(("count", "malicious"), [(3, 0), (7, 1), (9, 1), (11, 2), (16, 3)])
def test_bulyan(count: int, malicious: int) -> None:
    results = sites(count, 1)
    close(
        merged(f"bulyan(malicious={malicious})", results),
        aggregate_bulyan(list(results), malicious, aggregate_krum, to_keep=0),
    )


def test_bulyan_of_too_few_sites() -> None:
    results = sites(6)
    with pytest.raises(ValueError, match="4 \\* num_malicious"):
        aggregate_bulyan(list(results), 1, aggregate_krum, to_keep=0)
    with pytest.raises(ConfigError, match=r"rule.bulyan.malicious: 1: must be at most 0 with 6 sites .* = 7 sites"):
        merged("bulyan(malicious=1)", results)
