"""Robust rules against slow twins, Flower and attacks; each attack moves a rule by no more than its bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.merging.statistics import compute_gram, compute_norms
from fedcompress.merging.weighted_order import sort_columns, sort_with_weights
from fedcompress.types import Layout, Tensors, TensorSpec, zeros

LAYOUT = Layout((TensorSpec(name="a", shape=(5, 7)), TensorSpec(name="b", shape=(11,)), TensorSpec(name="s", shape=())))
Matrix = NDArray[np.float64]
CALLS = ["clip", "clip(norm=0.5)", "geometric-median", "krum", "krum(malicious=1)", "median", "multi-krum"]
CALLS += ["bulyan", "bulyan(malicious=1)", "trimmed-mean(beta=0.2,whole=true)"]
CALLS += ["multi-krum(malicious=2,kept=3)", "trimmed-mean", "trimmed-mean(beta=0.3)", "trimmed-mean(beta=0)"]


def tensors(row: Matrix) -> Tensors:
    out, at = {}, 0
    for spec in LAYOUT.tensors:
        out[spec.name] = row[at : at + spec.numel].reshape(spec.shape).astype(np.float32)
        at += spec.numel
    return out


def merge(rule: str, rows: Matrix, weights: list[float] | None = None) -> Matrix:
    """Merge updates that are the rows of a matrix."""
    merger = Merger(rule=parse_rule(rule), layout=LAYOUT)
    held = InMemoryUpdates(LAYOUT, [tensors(row) for row in rows])
    merged = merger.merge(zeros(LAYOUT), weights or [1.0] * len(rows), held)
    return np.concatenate([merged[t.name].reshape(-1) for t in LAYOUT.tensors]).astype(np.float64)


def cohort(sites: int, seed: int = 0) -> Matrix:
    """Updates around a common direction, in float32."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal(LAYOUT.numel) + 0.5 * generator.standard_normal((sites, LAYOUT.numel))
    return rows.astype(np.float32).astype(np.float64)


def shares(weights: list[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


# Slow twins: the definitions, in loops over numbers.


def median_twin(rows: Matrix, weights: list[float]) -> list[float]:
    out = []
    for column in rows.T:
        pairs = sorted((v, w) for v, w in zip(column, weights, strict=True) if w)
        half, low, high, below = sum(weights) / 2, None, None, 0.0
        for value, weight in pairs:
            below += weight
            low = value if low is None and below >= half - 1e-9 else low
            high = value if high is None and below > half + 1e-9 else high
        assert low is not None
        assert high is not None
        out.append((low + high) / 2)
    return out


def trimmed_twin(rows: Matrix, weights: list[float], beta: float) -> list[float]:
    out = []
    for column in rows.T:
        total, below = 0.0, 0.0
        for value, weight in sorted(zip(column, shares(weights), strict=True)):
            inside = min(below + weight, 1 - beta) - max(below, beta)
            total += max(inside, 0.0) * value
            below += weight
        out.append(total / (1 - 2 * beta))
    return out


def whole_twin(rows: Matrix, weights: list[float], beta: float) -> list[float]:
    count = int(beta * len(rows))
    out = []
    for column in rows.T:
        left = sorted(zip(column, weights, strict=True))[count : len(rows) - count]
        out.append(sum(v * w for v, w in left) / sum(w for _, w in left))
    return out


def bulyan_twin(rows: Matrix, weights: list[float], malicious: int) -> list[float]:
    """Two that are nearest to each other have one score: the larger weight, then the smaller norm goes first."""
    left, selected = list(zip(rows, weights, strict=True)), []
    while len(selected) < len(rows) - 2 * malicious:
        scores = scores_twin(np.array([row for row, _ in left]), malicious)
        keys = [(s, -w, float(row @ row)) for s, (row, w) in zip(scores, left, strict=True)]
        selected.append(left.pop(keys.index(min(keys)))[0])
    out = []
    for column in np.array(selected).T:
        middle = float(np.median(column))
        near = sorted(column, key=lambda v: abs(v - middle))[: len(rows) - 4 * malicious]
        out.append(sum(near) / len(near))
    return out


def scores_twin(rows: Matrix, malicious: int) -> list[float]:
    out = []
    for i, one in enumerate(rows):
        apart = sorted(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in np.delete(rows, i, 0))
        out.append(sum(apart[: max(len(rows) - malicious - 2, 1)]))
    return out


def krum_twin(rows: Matrix, weights: list[float], malicious: int, kept: int) -> Matrix:
    scores = scores_twin(rows, malicious)
    best = sorted(range(len(rows)), key=lambda i: scores[i])[:kept]
    total: Matrix = sum(weights[i] * rows[i] for i in best) / sum(weights[i] for i in best)
    return total


def geometric_twin(rows: Matrix, weights: list[float]) -> Matrix:
    """Weiszfeld on whole vectors, from the mean."""
    point: Matrix = np.average(rows, axis=0, weights=weights)
    for _ in range(3000):
        pull = [w / max(float(np.linalg.norm(point - row)), 1e-9) for w, row in zip(weights, rows, strict=True)]
        point = np.average(rows, axis=0, weights=pull)
    return point


def clip_twin(rows: Matrix, weights: list[float], norm: float) -> Matrix:
    lengths = [float(np.sqrt(sum(v * v for v in row))) for row in rows]
    bound = norm or float(np.median(lengths))
    pieces = [w * row * min(1.0, bound / n) for w, row, n in zip(shares(weights), rows, lengths, strict=True)]
    total: Matrix = np.sum(pieces, axis=0)
    return total


TWINS: dict[str, Callable[[Matrix, list[float]], Any]] = {
    "median": median_twin,
    "trimmed-mean(beta=0)": lambda rows, weights: np.average(rows, axis=0, weights=weights),
    "trimmed-mean(beta=0.2)": lambda rows, weights: trimmed_twin(rows, weights, 0.2),
    "trimmed-mean(beta=0.33)": lambda rows, weights: trimmed_twin(rows, weights, 0.33),
    "geometric-median": geometric_twin,
    "krum(malicious=2)": lambda rows, weights: krum_twin(rows, weights, 2, 1),
    "multi-krum": lambda rows, weights: krum_twin(rows, weights, 0, len(rows)),
    "multi-krum(malicious=2)": lambda rows, weights: krum_twin(rows, weights, 2, len(rows) - 2),
    "multi-krum(malicious=1,kept=3)": lambda rows, weights: krum_twin(rows, weights, 1, 3),
    "trimmed-mean(beta=0.3,whole=true)": lambda rows, weights: whole_twin(rows, weights, 0.3),
    "bulyan": lambda rows, weights: rows.mean(axis=0),
    "bulyan(malicious=1)": lambda rows, weights: bulyan_twin(rows, weights, 1),
    "clip": lambda rows, weights: clip_twin(rows, weights, 0),
    "clip(norm=2.5)": lambda rows, weights: clip_twin(rows, weights, 2.5),
    "clip(norm=1e9)": lambda rows, weights: np.average(rows, axis=0, weights=weights),
}


@pytest.mark.parametrize("call", TWINS)
@pytest.mark.parametrize("sites", [7, 8, 13])
def test_slow_twins(call: str, sites: int) -> None:
    for seed, weights in enumerate(([1.0] * sites, [1.0 + i % 4 for i in range(sites)], [2.0] * (sites - 1) + [9.0])):
        rows = cohort(sites, seed)
        assert np.allclose(merge(call, rows, weights), TWINS[call](rows, weights), atol=2e-6), weights


def test_whole_rows_are_sorted_like_numpy_does() -> None:
    for sites in (*range(1, 34), 63, 64, 65):
        values = np.random.default_rng(sites).integers(-4, 5, (sites, 300)).astype(np.float32)
        before = values.copy()
        assert (sort_columns(values) == np.sort(values, axis=0)).all(), sites
        assert (values == before).all()
    found, weights = sort_with_weights(np.array([[3, 1], [1, 2], [2, 3]], np.float32), np.array([0.5, 0.3, 0.2]))
    assert found.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert weights.tolist() == [[0.3, 0.5], [0.2, 0.3], [0.5, 0.2]]


def test_statistics() -> None:
    rows = cohort(5)
    held = InMemoryUpdates(LAYOUT, [tensors(row) for row in rows])
    assert np.allclose(compute_gram(held), rows @ rows.T, rtol=1e-12)
    assert np.allclose(compute_norms(held), np.linalg.norm(rows, axis=1), rtol=1e-12)


# Flower, where its definitions agree.


@pytest.mark.parametrize("sites", [7, 8, 10])
def test_flower_agrees(sites: int) -> None:
    from flwr.server.strategy.aggregate import (
        aggregate_bulyan,
        aggregate_krum,
        aggregate_median,
        aggregate_trimmed_avg,
    )

    rows, examples = cohort(sites), [3 + i for i in range(sites)]
    results = [([row], n) for row, n in zip(rows, examples, strict=True)]
    assert np.allclose(merge("median", rows), aggregate_median(results)[0], atol=1e-6)
    beta = 2 / sites  # a whole number of sites
    trimmed = aggregate_trimmed_avg(results, beta + 1e-9)[0]
    assert np.allclose(merge(f"trimmed-mean(beta={beta})", rows), trimmed, atol=1e-6)
    for share in (0.1, 0.2, 0.3, 0.45):
        trimmed = aggregate_trimmed_avg(results, share)[0]
        assert np.allclose(merge(f"trimmed-mean(beta={share},whole=true)", rows), trimmed, atol=1e-6)
    by_norm = sorted(results, key=lambda result: float(np.linalg.norm(result[0][0])))  # theirs breaks ties by position
    selected = aggregate_bulyan(by_norm, 1, aggregate_krum, to_keep=0)[0]
    assert np.allclose(merge("bulyan(malicious=1)", rows), selected, atol=1e-6)
    weights = [float(n) for n in examples]
    for malicious in (0, 1, 2):
        one = aggregate_krum(results, malicious, 0)[0]
        assert np.allclose(merge(f"krum(malicious={malicious})", rows, weights), one, atol=1e-6)
        for kept in (1, 4):
            several = aggregate_krum(results, malicious, kept)[0]
            call = f"multi-krum(malicious={malicious},kept={kept})"
            assert np.allclose(merge(call, rows, weights), several, atol=1e-6)


def test_flowers_message_api_agrees() -> None:
    from flwr.app import Array, ArrayRecord, RecordDict
    from flwr.serverapp.strategy.multikrum import select_multikrum

    rows = cohort(9)
    contents = [RecordDict({"arrays": ArrayRecord({"x": Array(row)})}) for row in rows]
    chosen = select_multikrum(contents, num_malicious_nodes=2, num_nodes_to_select=4)
    expected = np.mean([content["arrays"]["x"].numpy() for content in chosen], axis=0)
    assert np.allclose(merge("multi-krum(malicious=2,kept=4)", rows), expected, atol=1e-6)


# Laws.


@pytest.mark.parametrize("call", CALLS)
def test_the_order_of_sites_does_not_matter(call: str) -> None:
    rows, weights = cohort(8), [1.0 + i % 3 for i in range(8)]
    expected = merge(call, rows, weights)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(8)
        assert np.allclose(merge(call, rows[order], [weights[i] for i in order]), expected, atol=1e-6)


@pytest.mark.parametrize("call", [c for c in CALLS if not c.startswith(("krum", "bulyan(")) and "kept" not in c])
def test_opposite_updates_cancel(call: str) -> None:
    """Not where some updates are chosen: those may all be of one side."""
    half = cohort(4)
    assert np.allclose(merge(call, np.concatenate([half, -half])), 0, atol=1e-6)
    assert np.allclose(merge(call, np.stack([half[0], -half[0]])), 0, atol=1e-6)


@pytest.mark.parametrize("call", CALLS)
def test_weights_that_are_zero_leave_a_site_out(call: str) -> None:
    if call.startswith("clip"):
        pytest.skip("the median norm is of all sites")
    rows = cohort(9)
    wild = np.concatenate([rows, 1e6 + rows[:1]])
    assert np.allclose(merge(call, wild, [1.0] * 9 + [0.0]), merge(call, rows), atol=2e-6)


@pytest.mark.parametrize("call", CALLS)
def test_weights_count_like_copies(call: str) -> None:
    """A weight of 2 is a site that is there twice, for rules whose law is one of weights."""
    if "krum" in call or "bulyan" in call or "whole" in call or call == "clip":
        pytest.skip("counts sites")
    rows = cohort(5)
    assert np.allclose(merge(call, rows, [2.0, 1, 1, 1, 1]), merge(call, np.concatenate([rows[:1], rows])), atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("call", [c for c in CALLS if "norm" not in c])
def test_the_scale_of_updates_does_not_matter(call: str, scale: float) -> None:
    rows = cohort(8)
    assert np.allclose(merge(call, scale * rows) / scale, merge(call, rows), atol=1e-5)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_but_zeros(call: str) -> None:
    assert (merge(call, np.zeros((8, LAYOUT.numel))) == 0).all()


# Attacks by 4 of 13 sites: the largest share below a third for which 2 f + 3 <= n holds as well.

HONEST, MALICIOUS = 9, 4
ATTACKS: dict[str, Callable[[Matrix], Matrix]] = {
    "large constant": lambda rows: np.full((MALICIOUS, rows.shape[1]), 1e6),
    "sign flip": lambda rows: np.tile(-3 * rows.mean(0), (MALICIOUS, 1)),
    "one huge value": lambda rows: np.tile(np.eye(1, rows.shape[1], 3) * 3e38, (MALICIOUS, 1)),
    "huge and apart": lambda rows: np.outer([1e10, -1e20, 1e30, -3e38], np.ones(rows.shape[1])),
    "just outside": lambda rows: np.tile(rows.max(0) + 0.1, (MALICIOUS, 1)),
    "little": lambda rows: np.tile(rows.mean(0) + 1.5 * rows.std(0), (MALICIOUS, 1)),
    "zeros": lambda rows: np.zeros((MALICIOUS, rows.shape[1])),
}


def attacked(name: str) -> tuple[Matrix, Matrix]:
    """Honest updates, and all, where the malicious ones lie between them."""
    honest = cohort(HONEST, 3)
    everyone = np.insert(honest, [2, 4, 6, 8], ATTACKS[name](honest), axis=0)
    return honest, everyone


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("call", ["median", f"trimmed-mean(beta={MALICIOUS / 13 + 1e-6})"])
def test_entries_stay_within_the_honest_range(call: str, attack: str) -> None:
    """The bound: every entry lies between the least and the largest honest value of it."""
    honest, everyone = attacked(attack)
    merged = merge(call, everyone)
    assert (merged >= honest.min(0) - 1e-5).all()
    assert (merged <= honest.max(0) + 1e-5).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_geometric_median_stays_near(attack: str) -> None:
    """The bound: 2 (1 - k) / (1 - 2 k) times the largest distance of an honest update from the honest mean."""
    honest, everyone = attacked(attack)
    share, centre = MALICIOUS / len(everyone), honest.mean(0)
    spread = np.linalg.norm(honest - centre, axis=1).max()
    moved = np.linalg.norm(merge("geometric-median", everyone) - centre)
    assert moved <= 2 * (1 - share) / (1 - 2 * share) * spread
    assert moved <= 2 * spread  # what is seen


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["krum", "multi-krum"])
def test_krum_stays_in_the_honest_neighbourhood(rule: str, attack: str) -> None:
    """The bound: sqrt((n - f - 2) / (n - 2 f - 1)) honest diameters from an honest update."""
    honest, everyone = attacked(attack)
    sites = len(everyone)
    kept = ",kept=3" if rule == "multi-krum" else ""
    merged = merge(f"{rule}(malicious={MALICIOUS}{kept})", everyone)
    diameter = max(np.linalg.norm(a - b) for a in honest for b in honest)
    bound = np.sqrt((sites - MALICIOUS - 2) / (sites - 2 * MALICIOUS - 1)) * diameter
    assert np.linalg.norm(honest - merged, axis=1).min() <= bound + diameter * (rule == "multi-krum")
    if rule == "krum":
        assert np.linalg.norm(everyone - merged, axis=1).min() <= 1e-5 * np.linalg.norm(merged) + 1e-6


@pytest.mark.parametrize("attack", ATTACKS)
def test_bulyan_stays_among_honest_values(attack: str) -> None:
    """Of 13 sites 2: every entry is as near to the median as honest ones, so within twice their range of them."""
    honest = cohort(11, 3)
    everyone = np.insert(honest, [2, 6], ATTACKS[attack](honest)[:2], axis=0)
    merged = merge("bulyan(malicious=2)", everyone)
    width = honest.max(0) - honest.min(0)
    assert (merged >= honest.min(0) - width - 1e-5).all()
    assert (merged <= honest.max(0) + width + 1e-5).all()
    assert np.linalg.norm(merged - honest.mean(0)) < np.linalg.norm(honest - honest.mean(0), axis=1).max()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", [0.0, 2.0])
def test_clipping_bounds_what_a_site_can_do(norm: float, attack: str) -> None:
    """The bound: no result is longer than the norm, and the malicious part of it no longer than their share."""
    honest, everyone = attacked(attack)
    bound = norm or float(np.median(np.linalg.norm(everyone, axis=1)))
    merged = merge(f"clip(norm={norm})", everyone)
    rest = clip_twin(honest, [1.0] * HONEST, bound) * HONEST / len(everyone)
    assert np.linalg.norm(merged) <= bound * (1 + 1e-6)
    assert np.linalg.norm(merged - rest) <= bound * MALICIOUS / len(everyone) * (1 + 1e-6)


def test_the_mean_has_no_bound() -> None:
    """So the attacks above are ones."""
    honest, everyone = attacked("large constant")
    assert np.linalg.norm(merge("mean", everyone) - honest.mean(0)) > 1e6


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_come_so_far(call: str, value: float) -> None:
    rows = cohort(8)
    rows[3, 5] = value
    with pytest.raises(NonFiniteError, match="merge: a"):
        merge(call, rows)


# Errors.


@pytest.mark.parametrize(
    ("call", "sites", "words"),
    [
        (
            "krum(malicious=1)",
            4,
            r"rule\.krum\.malicious: 1: must be at most 0 with 4 sites .* krum needs .* = 5 sites",
        ),
        ("krum(malicious=3)", 8, r"at most 2 with 8 sites .* = 9 sites"),
        ("krum(malicious=1)", 3, r"at most 0 with 3 sites .* = 5 sites"),
        ("bulyan(malicious=1)", 6, r"rule\.bulyan\.malicious: 1: must be at most 0 with 6 sites .* = 7 sites"),
        ("bulyan(malicious=3)", 12, r"at most 2 with 12 sites .* = 15 sites"),
        ("multi-krum(malicious=2)", 6, r"rule\.multi-krum\.malicious: 2: .* with 6 sites .* multi-krum needs .* = 7"),
        ("multi-krum(malicious=1,kept=5)", 5, r"rule\.multi-krum\.kept: 5: must be at most 4: multi-krum has 5 sites"),
        ("multi-krum(kept=3)", 2, "at most 2"),
    ],
)
def test_too_few_sites(call: str, sites: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        merge(call, cohort(sites))


def test_a_site_without_weight_is_not_counted() -> None:
    with pytest.raises(ConfigError, match="with 4 sites"):
        merge("krum(malicious=1)", cohort(5), [1.0, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trimmed-mean(beta=0.5)", "from 0 to below 0.5"),
        ("trimmed-mean(beta=-0.1)", "from 0 to below 0.5"),
        ("clip(norm=-1)", "at least 0"),
        ("krum(malicious=-1)", r"rule\.krum\.malicious: -1: must be at least 0"),
        ("bulyan(malicious=-1)", r"rule\.bulyan\.malicious: -1: must be at least 0"),
        ("multi-krum(malicious=-1)", r"rule\.multi-krum\.malicious"),
        ("multi-krum(kept=-1)", r"rule\.multi-krum\.kept"),
        ("multi-krum(kept=1.5)", "type int"),
        ("geometric-median(nu=0)", "from 1e-7 to 1"),
        ("geometric-median(steps=0)", "at least 1"),
    ],
)
def test_bad_parameters(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_rule(text)
