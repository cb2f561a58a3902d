"""Elementwise rules against slow twins, and laws that all of them keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from fedcompress.merging import RULES, InMemoryUpdates, Merger, parse_rule
from fedcompress.merging import score_thresholds as scores_module
from fedcompress.merging.base import Block
from fedcompress.merging.rules.dare import draw_mask
from fedcompress.merging.ties_steps import disjoint_mean, elect_sign, sum_by_sign, trim
from fedcompress.numerics.philox import words
from fedcompress.types import Tensors
from tests.support import equal, lora_layout, normal
from tests.unit.merging import reference
from tests.unit.merging.samples import KINDS, layout_of, merged, merged_tensor, sample

SOME = [3, 1, 2, 2]
SCOPES = ("tensor", "global")


def two_tensors(kind: str, sites: int = 4, seed: int = 0) -> list[Tensors]:
    """One of the kind, and a normal one of like size, so that scopes differ."""
    other = sample("normal" if kind not in ("huge", "tiny") else kind, sites, seed + 1)
    factor = np.float32(1 if kind in ("huge", "tiny") else 0.5)
    return [{"w": a, "v": factor * b[:40]} for a, b in zip(sample(kind, sites, seed), other, strict=True)]


def lists(updates: list[Tensors]) -> list[reference.Update]:
    return [{n: [float(x) for x in v] for n, v in u.items()} for u in updates]


def same(ours: Tensors, twin: reference.Update, tolerance: float = 1e-6) -> None:
    for name, value in ours.items():
        expected = np.array(twin[name], np.float64)
        top = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance * top, err_msg=name)


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    with patch("fedcompress.merging.updates.block_size", lambda sites: size):
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("election", ["mass", "count"])
@pytest.mark.parametrize("weights", [SOME, [1, 1, 1, 1]])
def test_ties_is_its_twin(kind: str, scope: str, election: str, weights: list[int]) -> None:
    updates = two_tensors(kind)
    ours = merged(f"ties(density=0.3,scope={scope},election={election})", updates, weights)
    same(ours, reference.ties(lists(updates), weights, 0.3, scope, election))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_magnitude_prune_and_breadcrumbs_are_their_twins(kind: str, scope: str) -> None:
    updates = two_tensors(kind)
    for density in (0.07, 0.5, 1.0):
        twin = reference.mean([reference.trimmed(u, density, scope) for u in lists(updates)], SOME)
        same(merged(f"magnitude-prune(density={density},scope={scope})", updates, SOME), twin)
    for beta, gamma in ((0.7, 0.1), (0.0, 0.3), (0.9, 0.0), (0.5, 0.499)):
        ours = merged(f"breadcrumbs(beta={beta},gamma={gamma},scope={scope})", updates, SOME)
        same(ours, reference.breadcrumbs(lists(updates), SOME, beta, gamma, scope))


def test_breadcrumbs_drops_both_ends() -> None:
    update = {"w": np.array([5, -1, 2, -4, 3, 0.5, -9, 1.5, 7, -8], np.float32)}
    left = merged("breadcrumbs(beta=0.3,gamma=0.2,scale=2)", [update], [1])["w"]
    assert left.tolist() == [10, 0, 4, -8, 6, 0, 0, 0, 14, 0]


def test_breadcrumbs_on_one_magnitude_keeps_all_or_none() -> None:
    update = np.zeros(100, np.float32)
    update[:20] = 1
    assert (merged_tensor("breadcrumbs(beta=0.5,gamma=0.1)", [update], [1]) == update).all()
    assert not merged_tensor("breadcrumbs(beta=0.5,gamma=0.2)", [update], [1]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("round_", [1, 5])
def test_dare_rules_are_their_twins(kind: str, round_: int) -> None:
    updates = two_tensors(kind)
    left = reference.dared(lists(updates), 0.3, 0.3, 11, round_)
    same(merged("dare(density=0.3,seed=11)", updates, SOME, round_), reference.mean(left, SOME))
    wider = reference.dared(lists(updates), 0.3, 0.6, 11, round_)
    for rule in ("dare(density=0.3,q=0.6,seed=11)", "darex-q(density=0.3,q=0.6,seed=11)"):
        same(merged(rule, updates, SOME, round_), reference.mean(wider, SOME))
    for election in ("mass", "count"):
        ours = merged(f"dare-ties(density=0.3,seed=11,election={election})", updates, SOME, round_)
        same(ours, reference.vote(left, SOME, election))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("election", ["mass", "count"])
def test_della_is_its_twin(kind: str, election: str) -> None:
    updates = two_tensors(kind)
    for density, epsilon, round_ in ((0.6, 0.3, 1), (0.5, 0.0, 4), (0.9, 0.1, 2)):
        left = reference.della_kept(lists(updates), density, epsilon, 11, round_)
        call = f"della(density={density},epsilon={epsilon},seed=11,election={election})"
        same(merged(call, updates, SOME, round_), reference.vote(left, SOME, election))


def test_della_keeps_large_entries_more_often() -> None:
    """Shares by deciles of the magnitude, of a tensor of more entries than levels; the mean is the entry itself."""
    generator = np.random.default_rng(5)
    value = generator.standard_normal(20_000).astype(np.float32)
    order = np.argsort(np.abs(value))
    found = [merged_tensor(f"della(density=0.5,epsilon=0.4,seed={seed})", [value], [1]) for seed in range(10)]
    stays = np.mean([f != 0 for f in found], axis=0)[order].reshape(10, -1).mean(axis=1)
    np.testing.assert_allclose(stays, 0.1 + 0.8 * (np.arange(10) + 0.5) / 10, atol=0.02)
    top = order[-2000:]
    assert np.mean([np.abs(f[top]).mean() for f in found]) == pytest.approx(np.abs(value[top]).mean(), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("scope", SCOPES)
def test_rescaled_rules_are_their_twins(kind: str, norm: str, scope: str) -> None:
    updates = two_tensors(kind)
    twins = [reference.rescaled(u, reference.trimmed(u, 0.3, scope), norm) for u in lists(updates)]
    options = f"density=0.3,scope={scope},rescale={norm}"
    same(merged(f"magnitude-prune({options})", updates, SOME), reference.mean(twins, SOME))
    same(merged(f"ties({options})", updates, SOME), reference.vote(twins, SOME, "mass"))
    twins = [reference.rescaled(u, reference.trimmed(u, 0.6, scope, 0.1), norm) for u in lists(updates)]
    ours = merged(f"breadcrumbs(beta=0.4,gamma=0.1,scope={scope},rescale={norm})", updates, SOME)
    same(ours, reference.mean(twins, SOME))


@pytest.mark.parametrize("kind", [*KINDS, "sparse"])
def test_means_over_senders_are_their_twins(kind: str) -> None:
    updates = two_tensors("normal" if kind == "sparse" else kind)
    for i, update in enumerate(updates):
        update["v"][i::3] = 0
    same(merged("disjoint-mean", updates, SOME), reference.sparse_mean(lists(updates), SOME, 1.0))
    for lambda_ in (0.0, 0.3, 1.0):
        twin = reference.sparse_mean(lists(updates), SOME, lambda_)
        same(merged(f"sparse-mean(lambda={lambda_})", updates, SOME), twin)


def test_means_over_senders_by_hand() -> None:
    values = [np.array([4, 4, 0], np.float32), np.array([8, 0, 0], np.float32)]
    assert merged_tensor("disjoint-mean", values, [3, 1]).tolist() == [5, 4, 0]
    assert merged_tensor("sparse-mean(lambda=0)", values, [3, 1]).tolist() == [5, 3, 0]
    assert merged_tensor("sparse-mean(lambda=0.5)", values, [1, 1]).tolist() == [6, pytest.approx(2 / 0.75), 0]
    assert merged_tensor("wise-ft(alpha=0.25)", values, [1, 1]).tolist() == [1.5, 0.5, 0]
    assert merged_tensor("task-arithmetic(scale=-2)", values, [1, 1]).tolist() == [-12, -4, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("block", [7, 1000])
def test_pcb_rules_are_their_twins(kind: str, scope: str, block: int) -> None:
    updates, twins = two_tensors(kind), lists(two_tensors(kind))
    for ratio, clip in ((0.1, 0.0), (0.4, 0.05), (1.0, 0.0)):
        with blocks_of(block):
            ours = merged(f"pcb(ratio={ratio},clip={clip},scope={scope})", updates, SOME)
            paper = merged(f"pcb-paper(ratio={ratio},scope={scope})", updates, SOME)
        same(ours, reference.pcb(twins, SOME, ratio, clip, scope))
        same(paper, reference.pcb_paper(twins, SOME, ratio, scope))
        assert any(v.any() for v in ours.values())
        assert any(v.any() for v in paper.values())


def test_pcb_on_ternary_updates_is_agreement() -> None:
    """Of one magnitude, importance says nothing: the same without it, and nothing is left where signs disagree."""
    updates = [{"w": v} for v in sample("half-ternary", 3, 5)]
    signs = np.sign(np.stack([u["w"] for u in updates])).sum(0)
    for ratio in (0.05, 0.3):
        found = merged(f"pcb(ratio={ratio},clip=0)", updates, [1, 1, 1])["w"]
        twin = reference.pcb(lists(updates), [1, 1, 1], ratio, 0.0, "tensor", importance=False)
        np.testing.assert_allclose(found, twin["w"], atol=1e-7)
        assert found.any()
        assert set(np.abs(found).tolist()) == {0.0, 0.5}
        assert (np.sign(found)[found != 0] == np.sign(signs)[found != 0]).all()
        assert (found[np.abs(signs) == 3] == np.sign(signs[np.abs(signs) == 3]) * 0.5).all()
        assert (np.abs(signs) == 3).any()
        assert not found[signs == 0].any()


def test_pcb_paper_on_ternary_updates_has_few_levels() -> None:
    """What all agree on is returned whole; what some oppose is shrunk, not dropped: no score is below 0."""
    updates = [{"w": v} for v in sample("half-ternary", 3, 5)]
    signs = np.sign(np.stack([u["w"] for u in updates])).sum(0)
    found = merged("pcb-paper(ratio=1)", updates, [1, 1, 1])["w"]
    assert (found[np.abs(signs) == 3] == np.sign(signs[np.abs(signs) == 3]) * 0.5).all()
    opposed = (np.abs(signs) == 1) & (np.abs(np.stack([u["w"] for u in updates])) > 0).all(0)
    assert opposed.any()
    assert ((np.abs(found[opposed]) > 0) & (np.abs(found[opposed]) < 0.5)).all()
    assert len(set(found.tolist())) <= 3**3


def test_what_rounding_leaves_of_a_sum_has_no_sign() -> None:
    """0.5 is lost beside 3e30, in some orders of the sites."""
    for order in permutations([0.0, 0.5, 3e30, -3e30, 0.0]):
        values = [np.array([0, v, 0], np.float32) for v in order]
        assert not merged_tensor("pcb(ratio=0.5)", values, [1] * 5)[1], order


def test_scores_that_rounding_makes_differ_count_alike() -> None:
    """The first site agrees in place 0 with k sites of weight 1, in place 1 with one of weight k."""
    for k in range(1, 40):
        first, one, many = (np.array(v, np.float32) for v in ([2, 2, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]))
        for rule in ("pcb(ratio=0.5,clip=0)", "pcb-paper(ratio=0.5)"):
            found = merged_tensor(rule, [first * 1e-3, *([one * 1e-3] * k), many * 1e-3], [1, *([1] * k), k])
            assert found[0] > 1e-3, (rule, k)
            assert found[1] > 1e-3, (rule, k)
            if rule.startswith("pcb("):
                assert found[0] == pytest.approx(found[1]), k


def test_pcb_favours_what_sites_agree_on() -> None:
    values = [np.array([2, 2, 0.1, 2], np.float32), np.array([2, -2, 0.1, 0], np.float32)]
    assert merged_tensor("pcb(ratio=0.25)", values, [1, 1]).tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize("rule", ["pcb(ratio=1,clip=0)", "pcb-paper(ratio=1)"])
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1.0, 1e38])
def test_pcb_does_not_underflow_or_overflow(rule: str, scale: float) -> None:
    value = (np.array([1, -3, 2, 0.0]) * scale).astype(np.float32)
    for sites in (1, 2, 20):
        found = merged_tensor(rule, [value] * sites, [1] * sites)
        np.testing.assert_allclose(found, value, rtol=1e-6)
    assert merged_tensor(rule, [value, np.zeros(4, np.float32)], [1, 1])[1] == value[1]


def test_pcb_of_a_thousand_sites() -> None:
    """exp(1000) is infinite, exp(-1000) is 0: then the largest entries are all that counts."""
    value = np.array([1, -3, 2.9999, 0.0], np.float32)
    assert merged_tensor("pcb(ratio=1,clip=0)", [value] * 1000, [1] * 1000).tolist() == pytest.approx(
        [0, -3, 2.9999, 0]
    )


def test_the_released_code_of_pcb() -> None:
    """Its formulas for d = 20000, equal weights and a whole update, in which they have no flaw."""
    generator = np.random.default_rng(3)
    values = (0.3 * generator.standard_normal((3, 20000))).astype(np.float32)
    deltas = values.astype(np.float64)
    size = np.abs(deltas)
    order = np.sort(size, 1)
    low, high = order[:, [2]], order[:, [19997]]
    size = np.clip(size, low, high)
    own = np.exp(3 * ((size - low) / (high - low)) ** 2)
    score = own * np.tanh(deltas * deltas.sum(0))
    level = np.sort(score, 1)[:, [18000]]
    score = np.clip(score, level, score.max(1, keepdims=True))
    scale = (score - level) / (score.max(1, keepdims=True) - level)
    expected = (np.sign(deltas) * size * scale).sum(0) / np.maximum(scale.sum(0), 1e-12)
    found = merged_tensor("pcb(scope=global)", list(values), [1, 1, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert 0.05 < (found != 0).mean() < 0.3


@pytest.mark.parametrize("size", [5, 64, 1000])
@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_score_levels_are_sorted_ranks(size: int, share: float) -> None:

    generator = np.random.default_rng(size)
    updates = [{"w": generator.standard_normal(size).astype(np.float32)} for _ in range(3)]
    table = generator.standard_normal((3, size)) * 10.0 ** generator.integers(-300, 300, (3, size))
    table[0, ::2] = -0.0
    table[1] = -3.5
    at = {float(v): i for i, v in enumerate(updates[0]["w"])}
    held = InMemoryUpdates(layout_of(updates[0]), updates)
    with blocks_of(13):
        [group] = scores_module.list_groups(held, "tensor")
        low, top = scores_module.score_levels(
            held, group, share, lambda _, values: table[:, [at[float(v)] for v in values[0]]]
        )
    assert low.tolist() == np.sort(table, 1)[:, -int(np.ceil(share * size))].tolist()
    assert top.tolist() == table.max(1).tolist()


# ---- ties of votes ----


def test_a_count_survives_a_minority_of_great_mass() -> None:
    values = [np.array([v], np.float32) for v in (1e30, -1e-10, -1e-10)]
    assert merged_tensor("ties(density=1,election=count)", values, [1, 1, 1])[0] == np.float32(-1e-10)
    assert merged_tensor("ties(density=1)", values, [1, 1, 1])[0] == np.float32(1e30)


@pytest.mark.parametrize("election", ["mass", "count"])
def test_weights_that_balance_are_a_tie(election: str) -> None:
    """Also where their sums are rounded: k sites of 1 / (2 k) against one of a half."""
    for k in range(1, 60):
        weights = np.array([1.0] * k + [k]) / (2 * k)
        values = np.array([[0.1]] * k + [[-0.1]], np.float32)
        sums = sum_by_sign(values, weights)
        sign = elect_sign(sums, election)
        assert sign[0] == 0, k
        assert disjoint_mean(sums, sign)[0] == 0, k


def test_the_three_steps_of_ties_by_hand() -> None:
    """Entries of two sites: all of one sign, opposed, trimmed at one site, absent."""
    values = np.array([[4, 3, 2, 0], [2, -5, -1, 0]], np.float32)
    trimmed = trim(values, np.array([2, 2], np.float32))
    assert trimmed.tolist() == [[4, 3, 2, 0], [2, -5, 0, 0]]
    assert trim(values, np.array([2, 2], np.float32), np.array([3, 9], np.float32)).tolist() == [
        [0, 3, 2, 0],
        [2, -5, 0, 0],
    ]
    sums = sum_by_sign(trimmed, np.array([0.75, 0.25]))
    assert elect_sign(sums, "mass").tolist() == [1, 1, 1, 0]
    assert disjoint_mean(sums, elect_sign(sums, "mass")).tolist() == [3.5, 3, 2, 0]
    heavier = sum_by_sign(trimmed, np.array([0.5, 0.5]))
    assert elect_sign(heavier, "mass").tolist() == [1, -1, 1, 0]
    assert elect_sign(heavier, "count").tolist() == [1, 0, 1, 0]
    assert disjoint_mean(heavier, elect_sign(heavier, "mass")).tolist() == [3, -5, 2, 0]


# ---- masks ----


def mask(
    density: float, seed: int, *, size: int = 4000, start: int = 0, name: str = "w", round_: int = 1
) -> np.ndarray:
    values = np.zeros((2, size), np.float32)
    return draw_mask(Block(name, start, values, np.ones(2) / 2, values[0], round_), density, seed)


def test_masks_have_their_density_and_differ() -> None:
    first = mask(0.3, 1)
    assert abs(first.mean() - 0.3) < 0.02
    others = [first[::-1], mask(0.3, 2), mask(0.3, 1, name="v"), mask(0.3, 1, round_=2), mask(0.3, 1, start=4000)]
    for other in others:
        assert abs((first & other).mean() - 0.09) < 0.02
    assert (mask(0.3, 1) == first).all()
    assert (mask(0.3, 1) <= mask(0.31, 1)).all()


def test_words_start_anywhere() -> None:
    whole = words(5, "x", 101)
    for start in (0, 1, 7, 8, 9, 31, 99):
        for count in (0, 1, 2, 100 - start):
            assert (words(5, "x", count, start) == whole[start : start + count]).all()


# ---- laws ----

CALLS = [
    "breadcrumbs(beta=0.3,gamma=0.1)",
    "breadcrumbs(scope=global)",
    "dare(density=0.5)",
    "dare-ties(density=0.5)",
    "darex-q(density=0.5,q=0.7)",
    "della(density=0.5,epsilon=0.2)",
    "disjoint-mean",
    "magnitude-prune(density=0.4)",
    "magnitude-prune(scope=global)",
    "magnitude-prune(density=0.4,rescale=l2)",
    "mean",
    "pcb(ratio=0.5)",
    "pcb(ratio=0.3,scope=global)",
    "pcb-paper(ratio=0.5)",
    "pcb-paper(ratio=0.3,scope=global)",
    "sparse-mean",
    "task-arithmetic(scale=1.5)",
    "ties(density=0.4)",
    "ties(density=0.4,election=count,scope=global)",
    "ties(density=0.4,rescale=l1)",
    "wise-ft",
]
OWN = {row_name for row_name, row in RULES.items() if row.kind == "elementwise"}
SEEDED = [c for c in CALLS if hasattr(parse_rule(c), "seed")]
UNSEEDED = [c for c in CALLS if c not in SEEDED]
ENTRY = st.sampled_from([0.0, 0.0, 0.5, -0.5, 1.0, -1.0, 0.1, -0.3, 1e-30, -1e-42, 3e30, -3e30, 7.0])


@st.composite
def cases(draw: st.DrawFn, most: int = 5) -> tuple[list[Tensors], list[int]]:
    """Updates of two tensors from few values, so that equal and opposite ones meet, and integer weights."""
    sites = draw(st.integers(1, most))
    sizes = {"w": draw(st.integers(0, 12)), "v": draw(st.integers(1, 4))}
    updates = [
        {n: np.array(draw(st.lists(ENTRY, min_size=s, max_size=s)), np.float32) for n, s in sizes.items()}
        for _ in range(sites)
    ]
    return updates, draw(st.lists(st.integers(1, 9), min_size=sites, max_size=sites))


def alike(left: Tensors, right: Tensors, updates: list[Tensors]) -> None:
    """Up to rounding of the largest entry that was sent to a place."""
    for name in left:
        top = np.abs(np.stack([u[name] for u in updates])).max(axis=0)
        assert (np.abs(left[name] - right[name]) <= 1e-5 * top + 1e-44).all(), name


def test_every_elementwise_rule_of_this_file_is_in_the_table() -> None:
    assert {parse_rule(c).name for c in CALLS} <= OWN


@pytest.mark.parametrize("call", UNSEEDED)
@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_order_of_sites_is_irrelevant(call: str, case: tuple[list[Tensors], list[int]], seed: int) -> None:
    updates, weights = case
    order = np.random.default_rng(seed).permutation(len(updates))
    other = merged(call, [updates[i] for i in order], [weights[i] for i in order])
    alike(merged(call, updates, weights), other, updates)


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=30, deadline=None)
@given(case=cases(), factor=st.sampled_from([0.1, 3.0, 1e-9, 7e8]))
def test_weights_are_relative(call: str, case: tuple[list[Tensors], list[int]], factor: float) -> None:
    updates, weights = case
    alike(merged(call, updates, weights), merged(call, updates, [factor * w for w in weights]), updates)


@pytest.mark.parametrize("call", UNSEEDED + [RULES[parse_rule(c).name].identity for c in SEEDED])
@settings(max_examples=30, deadline=None)
@given(case=cases(most=1))
def test_opposite_updates_cancel_exactly(call: str, case: tuple[list[Tensors], list[int]]) -> None:
    [update], [weight] = case
    opposite = {n: -v for n, v in update.items()}
    for updates in ([update, opposite], [opposite, update]):
        assert not any(v.any() for v in merged(call, updates, [weight, weight]).values())


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=30, deadline=None)
@given(case=cases(), size=st.integers(1, 9))
def test_blocks_of_any_size_give_equal_bits(call: str, case: tuple[list[Tensors], list[int]], size: int) -> None:
    updates, weights = case
    expected = merged(call, updates, weights, round_=3)
    with (
        blocks_of(size),
        patch("fedcompress.merging.score_thresholds.THREADS", 1),
        patch("fedcompress.merging.engine.THREADS", 3),
    ):
        assert equal(merged(call, updates, weights, round_=3), expected)


@pytest.mark.parametrize("call", CALLS)
def test_blocks_give_equal_bits_on_normal_updates(call: str) -> None:
    """Exponentials and hyperbolic tangents of vectors may not depend on where a vector ends."""
    updates = two_tensors("normal", 3)
    expected = merged(call, updates, [1, 2, 4])
    assert any(v.any() for v in expected.values())
    for size in (1, 3, 13, 60):
        with blocks_of(size):
            assert equal(merged(call, updates, [1, 2, 4]), expected)


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_nothing_is_made_up(call: str, case: tuple[list[Tensors], list[int]]) -> None:
    """Finite; 0 where all sent 0; between the least and the largest that was sent, times what scales up."""
    updates, weights = case
    gain = {"dare": 2, "dare-ties": 2, "darex-q": 1 / 0.7, "task-arithmetic": 1.5, "della": 1 / 0.3}.get(
        parse_rule(call).name, 20 if "rescale" in call else 1
    )
    found = merged(call, updates, weights)
    for name, value in found.items():
        sent = np.stack([u[name] for u in updates])
        if not call.startswith("pcb("):  # which clips: an entry may grow to the clip
            assert (value <= gain * np.maximum(sent.max(0), 0) * 1.00001 + 1e-44).all()
            assert (value >= gain * np.minimum(sent.min(0), 0) * 1.00001 - 1e-44).all()
        assert not value[(sent == 0).all(0)].any()
        assert np.isfinite(value).all()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("breadcrumbs(beta=-0.1)", "rule.breadcrumbs.beta"),
        ("breadcrumbs(beta=0.9,gamma=0.1)", "rule.breadcrumbs.gamma"),
        ("breadcrumbs(gamma=1)", "rule.breadcrumbs.gamma"),
        ("breadcrumbs(scope=all)", "rule.breadcrumbs.scope"),
        ("breadcrumbs(scale=1e7)", "rule.breadcrumbs.scale"),
        ("dare(density=0)", "rule.dare.density"),
        ("dare(q=1e-9)", "rule.dare.q"),
        ("dare(seed=-1)", "rule.dare.seed"),
        ("breadcrumbs(rescale=l3)", "rule.breadcrumbs.rescale"),
        ("magnitude-prune(rescale=max)", "rule.magnitude-prune.rescale"),
        ("ties(rescale=yes)", "rule.ties.rescale"),
        ("della(density=0)", "rule.della.density"),
        ("della(density=0.3,epsilon=0.3)", "rule.della.epsilon"),
        ("della(density=0.9,epsilon=0.2)", "rule.della.epsilon"),
        ("della(epsilon=-0.1)", "rule.della.epsilon"),
        ("della(election=size)", "rule.della.election"),
        ("della(scale=1e7)", "rule.della.scale"),
        ("della(seed=-1)", "rule.della.seed"),
        ("dare-ties(density=2)", "rule.dare-ties.density"),
        ("dare-ties(election=size)", "rule.dare-ties.election"),
        ("dare-ties(seed=9223372036854775808)", "rule.dare-ties.seed"),
        ("darex-q(density=0.5,q=0.4)", "rule.darex-q.q"),
        ("darex-q(density=0)", "rule.darex-q.density"),
        ("darex-q(seed=-1)", "rule.darex-q.seed"),
        ("magnitude-prune(density=1.1)", "rule.magnitude-prune.density"),
        ("magnitude-prune(scope=row)", "rule.magnitude-prune.scope"),
        ("pcb(ratio=0)", "rule.pcb.ratio"),
        ("pcb(clip=0.5)", "rule.pcb.clip"),
        ("pcb(scope=row)", "rule.pcb.scope"),
        ("pcb(scale=-2e6)", "rule.pcb.scale"),
        ("pcb-paper(ratio=1.5)", "rule.pcb-paper.ratio"),
        ("pcb-paper(scope=row)", "rule.pcb-paper.scope"),
        ("sparse-mean(lambda=1.1)", "rule.sparse-mean.lambda"),
        ("task-arithmetic(scale=1e9)", "rule.task-arithmetic.scale"),
        ("wise-ft(alpha=1.5)", "rule.wise-ft.alpha"),
    ],
)
def test_bad_parameters(text: str, field: str) -> None:
    with pytest.raises(ConfigError, match=r"must be|one of") as caught:
        parse_rule(text)
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("space", ["factors", "product"])
def test_each_round_has_its_masks(space: str) -> None:
    layout = lora_layout(modules=1)
    updates, base = [normal(layout, s) for s in (1, 2)], normal(layout, 0)
    merger = Merger(rule=parse_rule("dare(density=0.5)"), layout=layout, space=space)
    first, again, second = (merger.merge(base, [1, 1], InMemoryUpdates(layout, updates), round_=r) for r in (1, 1, 2))
    assert equal(first, again)
    for name in ("m0.lora_B.weight", "head.weight"):
        assert not np.allclose(first[name], second[name], atol=0.01)
