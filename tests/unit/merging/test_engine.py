"""Every rule of RULES keeps its law; lora-ridge against a dense oracle; mean against peft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcompress.errors import ConfigError, StateError, UnknownNameError
from fedcompress.merging import (
    RULES,
    InMemoryUpdates,
    Merger,
    UpdateFiles,
    merge_arrays,
    merge_factors,
    pairs_of,
    parse_rule,
)
from fedcompress.merging.engine import SPACES
from fedcompress.types import Layout, Tensors, TensorSpec, zeros
from tests.support import equal, lora_layout, normal

LAYOUT = lora_layout(modules=3)
BASE = normal(LAYOUT, 0, 0.3)


def merge(rule: str, weights: list[float], updates: list[Tensors], space: str = "factors") -> Tensors:
    return Merger(rule=parse_rule(rule), layout=LAYOUT, space=space).merge(
        BASE, weights, InMemoryUpdates(LAYOUT, updates)
    )


IDENTITIES = {name: row.identity for name, row in RULES.items() if row.identity}


@pytest.mark.parametrize(
    ("call", "space"),
    [(call, s) for n, call in IDENTITIES.items() for s in SPACES if s == "factors" or RULES[n].kind == "elementwise"],
)
def test_equal_updates_are_returned(call: str, space: str) -> None:
    """One update with weight 1, and several that are equal."""
    update = normal(LAYOUT, 1, 0.1)
    for weights in ([5.0], [1.0, 2.0]):
        merged = merge(call, weights, [update] * len(weights), space=space)
        assert list(merged) == [t.name for t in LAYOUT.tensors]
        for name, value in update.items():
            assert np.allclose(merged[name], value, atol=1e-5), name


@pytest.mark.parametrize("rule", RULES)
def test_order_and_scale_of_weights_do_not_matter(rule: str) -> None:
    if hasattr(parse_rule(rule), "seed"):
        rule = RULES[rule].identity  # masks are drawn by the number of a site
    updates = [normal(LAYOUT, s, 0.1) for s in (1, 2, 3)]
    before = [{n: v.copy() for n, v in u.items()} for u in updates]
    one = merge(rule, [1.0, 2.0, 3.0], updates)
    two = merge(rule, [30.0, 10.0, 20.0], [updates[2], updates[0], updates[1]])
    for name in one:
        assert np.allclose(one[name], two[name], atol=1e-6), name
    for update, copy in zip(updates, before, strict=True):
        assert all((update[n] == copy[n]).all() for n in update)


@pytest.mark.parametrize("rule", RULES)
def test_bad_weights(rule: str) -> None:
    update = normal(LAYOUT, 1)
    for weights, updates in (([], []), ([0.0], [update]), ([-1.0, 2.0], [update, update]), ([1.0], [update, update])):
        with pytest.raises(ConfigError, match="weights"):
            merge(rule, weights, updates)


def test_mean_equals_peft() -> None:
    """peft's task arithmetic with weights that add up to 1 is the weighted mean."""
    import torch
    from peft.utils.merge_utils import task_arithmetic

    updates = [normal(LAYOUT, s) for s in (1, 2, 3)]
    merged = merge("mean", [1.0, 2.0, 5.0], updates)
    weights = torch.tensor([1.0, 2.0, 5.0]) / 8
    for name in merged:
        oracle = task_arithmetic([torch.from_numpy(u[name]) for u in updates], weights).numpy()
        assert np.allclose(merged[name], oracle, atol=1e-6), name


def products(tensors: Tensors, module: int) -> np.ndarray:
    return tensors[f"m{module}.lora_B.weight"].astype(np.float64) @ tensors[f"m{module}.lora_A.weight"]


def test_lora_ridge_equals_the_dense_least_squares() -> None:
    """Stack the ridge as extra equations, form M, and let lstsq solve it."""
    weights, updates, ridge = np.array([0.2, 0.3, 0.5]), [normal(LAYOUT, s, 0.2) for s in (1, 2, 3)], 1e-2
    merged = merge(f"lora-ridge(ridge={ridge})", weights.tolist(), updates)
    sites = [{n: BASE[n].astype(np.float64) + u[n] for n in u} for u in updates]
    for module in range(3):
        a_name, b_name = f"m{module}.lora_A.weight", f"m{module}.lora_B.weight"
        target = sum(w * products(s, module) for w, s in zip(weights, sites, strict=True))
        a = sum(w * s[a_name] for w, s in zip(weights, sites, strict=True))
        b = sum(w * s[b_name] for w, s in zip(weights, sites, strict=True))
        lam = ridge * np.trace(a @ a.T) / a.shape[0]
        rows = np.vstack([a.T, np.sqrt(lam) * np.eye(a.shape[0])])
        solved = np.linalg.lstsq(rows, np.vstack([target.T, np.sqrt(lam) * b.T]), rcond=None)[0].T
        assert np.allclose(merged[a_name] + BASE[a_name], a, atol=1e-6)
        assert np.allclose(merged[b_name] + BASE[b_name], solved, atol=1e-5)


def test_lora_ridge_fits_the_mean_product_better_than_the_mean_of_factors() -> None:
    updates = [normal(LAYOUT, s, 0.5) for s in (1, 2, 3, 4)]
    sites = [{n: BASE[n] + u[n] for n in u} for u in updates]
    error = {}
    for rule in ("mean", "lora-ridge"):
        merged = merge(rule, [1.0] * 4, updates)
        state = {n: BASE[n] + merged[n] for n in merged}
        error[rule] = sum(np.linalg.norm(products(state, m) - sum(products(s, m) for s in sites) / 4) for m in range(3))
    assert error["lora-ridge"] < error["mean"]


def test_units_pair_factors_also_of_embeddings() -> None:
    specs = [
        TensorSpec(name="x.lora_A.weight", shape=(2, 8), group="lora_a"),
        TensorSpec(name="x.lora_B.weight", shape=(8, 2), group="lora_b"),
        TensorSpec(name="e.lora_embedding_A", shape=(2, 9), group="lora_a"),
        TensorSpec(name="e.lora_embedding_B", shape=(8, 2), group="lora_b"),
        TensorSpec(name="alone.lora_A.weight", shape=(2, 8), group="lora_a"),
        TensorSpec(name="head", shape=(3,), group="head"),
    ]
    pairs, lone = pairs_of(Layout(tuple(specs)))
    assert [(p.name, p.a.name, p.b.name, p.shape) for p in pairs] == [
        ("x.weight", "x.lora_A.weight", "x.lora_B.weight", (8, 8)),
        ("e", "e.lora_embedding_A", "e.lora_embedding_B", (8, 9)),
    ]
    assert [t.name for t in lone] == ["alone.lora_A.weight", "head"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiers", "must be one of"),
        ("mean(x=1)", "x=1"),
        ("lora-ridge(ridge=no)", "must be a number"),
        ("lora-ridge(ridge=0)", "from 1e-9 to 1e6"),
        ("lora-ridge(ridge=nan)", "must be a number"),
        ("lora-ridge(ridge=1,ridge=2)", "once each"),
        ("lora-ridge(ridge=1", "name or name\\(key"),
    ],
)
def test_bad_rules(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_rule(text)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", [[float("nan"), 1.0], [1.0, float("nan")], [float("inf"), 1.0], [1e308, 1e308]])
def test_weights_must_be_finite(rule: str, weights: list[float]) -> None:
    update = normal(LAYOUT, 1)
    with pytest.raises(ConfigError, match="finite"):
        merge(rule, weights, [update, update])


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((2, 8), (8,)), ((8,), (8, 2)), ((2, 8), (8, 3)), ((2, 8, 1, 1), (8, 2, 1, 1)), ((), ())],
)
def test_factors_that_do_not_multiply_are_merged_alone(shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    layout = Layout(
        (
            TensorSpec(name="x.lora_A.weight", shape=shape_a, group="lora_a"),
            TensorSpec(name="x.lora_B.weight", shape=shape_b, group="lora_b"),
        )
    )
    updates = [normal(layout, s) for s in (1, 2)]
    base, rules = normal(layout, 0), ("mean", *(n for n, r in RULES.items() if r.kind == "lora"))
    results = [
        Merger(rule=parse_rule(r), layout=layout).merge(base, [1.0, 1.0], InMemoryUpdates(layout, updates))
        for r in rules
    ]
    for name in results[0]:
        assert all((r[name] == results[0][name]).all() for r in results)
        assert np.allclose(results[0][name], (updates[0][name] + updates[1][name]) / 2)


@pytest.mark.parametrize("ridge", ["1e-9", "1e-3", "1e6"])
@pytest.mark.parametrize("shape", ["tall", "dead", "zero", "rank0"])
def test_lora_ridge_survives_factors_without_full_rank(ridge: str, shape: str) -> None:
    rank, width = {"tall": (12, 4), "dead": (4, 12), "zero": (4, 12), "rank0": (0, 12)}[shape]
    layout = lora_layout(modules=1, rank=rank, width=width)
    updates = [normal(layout, s) for s in (1, 2)]
    for update in updates:
        update["m0.lora_A.weight"][2:] = 0
        if shape == "zero":
            update["m0.lora_A.weight"][:] = 0
    base = {n: np.zeros_like(v) for n, v in updates[0].items()}
    merger = Merger(rule=parse_rule(f"lora-ridge(ridge={ridge})"), layout=layout)
    layout.check(merger.merge(base, [1.0, 1.0], InMemoryUpdates(layout, updates)), what="merged")


def test_product_space_is_the_rule_on_dense_matrices() -> None:
    """What is merged are the changes of ``B A``; then A is the mean, and B fits by ridge least squares."""
    updates, weights = [normal(LAYOUT, s, 0.2) for s in (1, 2, 3)], np.array([0.2, 0.3, 0.5])
    merged = merge("ties(density=0.3)", weights.tolist(), updates, space="product")
    for module in range(3):
        a_name, b_name = f"m{module}.lora_A.weight", f"m{module}.lora_B.weight"
        layout = Layout((TensorSpec(name="dense", shape=(24, 24)),))
        sites = [{n: BASE[n].astype(np.float64) + u[n] for n in u} for u in updates]
        dense = [{"dense": (products(s, module) - products(BASE, module)).astype(np.float32)} for s in sites]
        merger = Merger(rule=parse_rule("ties(density=0.3)"), layout=layout)
        change = merger.merge(zeros(layout), weights.tolist(), InMemoryUpdates(layout, dense))["dense"]
        a = sum(w * s[a_name] for w, s in zip(weights, sites, strict=True))
        b = sum(w * s[b_name] for w, s in zip(weights, sites, strict=True))
        lam = 1e-3 * np.trace(a @ a.T) / a.shape[0]
        rows = np.vstack([a.T, np.sqrt(lam) * np.eye(a.shape[0])])
        right = np.vstack([(products(BASE, module) + change).T, np.sqrt(lam) * b.T])
        solved = np.linalg.lstsq(rows, right, rcond=None)[0].T
        assert np.allclose(merged[a_name] + BASE[a_name], a, atol=1e-6)
        assert np.allclose(merged[b_name] + BASE[b_name], solved, atol=1e-5)
    alone = merge("ties(density=0.3)", weights.tolist(), updates)
    assert (merged["head.weight"] == alone["head.weight"]).all()


@pytest.mark.parametrize("rule", RULES)
def test_files_merge_like_memory(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in blocks far smaller than a tensor."""
    updates, weights = [normal(LAYOUT, s, 0.1) for s in (1, 2, 3)], [1.0, 2.0, 3.0]
    expected = merge(rule, weights, updates)
    spool = UpdateFiles(tmp_path, LAYOUT, ["a", "b", "c"])
    for name, update in zip("abc", updates, strict=True):
        spool.add(name, update)
    monkeypatch.setattr("fedcompress.merging.updates.block_size", lambda sites: 7)
    merged = Merger(rule=parse_rule(rule), layout=LAYOUT).merge(BASE, weights, spool)
    assert equal(merged, expected)
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-1])
    assert not spool.has("b")
    with pytest.raises(StateError, match=r"b: head\.weight"):
        Merger(rule=parse_rule(rule), layout=LAYOUT).merge(BASE, weights, spool)


@pytest.mark.parametrize("text", ["tiers", "Ties", "", "ties(density=0.2"])
def test_texts_that_name_no_rule(text: str) -> None:
    with pytest.raises(UnknownNameError, match="one of"):
        parse_rule(text)


@pytest.mark.parametrize("text", ["ties(election=x)", "ties(scope=x)", "ties(x=1)"])
def test_a_bad_parameter_is_no_unknown_name(text: str) -> None:
    with pytest.raises(ConfigError, match="one of") as caught:
        parse_rule(text)
    assert not isinstance(caught.value, UnknownNameError)


def test_what_rules_need() -> None:
    needed = {"krum(malicious=2)": 7, "multi-krum(malicious=1)": 5, "krum": 1, "bulyan(malicious=2)": 11}
    for text in (*RULES, *needed):
        rule = parse_rule(text)
        assert rule.min_updates == needed.get(text, 1), text
        assert rule.needs_rounds == (text == "rolora"), text
        assert rule.requires_frozen_a == (text == "ffa"), text


def test_small_arrays_and_factors() -> None:
    with pytest.raises(ConfigError, match="weights"):
        merge_arrays(parse_rule("mean"), [])
    with pytest.raises(ConfigError, match="must be a rule for LoRA modules"):
        merge_factors(parse_rule("mean"), [([[1.0]], [[1.0]])])
    a, b = merge_factors(parse_rule("ffa"), [([[1.0]], [[2.0]])], published=([[5.0]], [[0.0]]))
    assert (a.tolist(), b.tolist()) == ([[5.0]], [[2.0]])


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_an_example(rule: str) -> None:
    assert ">>>" in (RULES[rule].config.__doc__ or "")
