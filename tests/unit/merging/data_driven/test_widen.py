"""WIDEN against loops and against fifty digits, its closed forms, and inputs that it refuses."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from importlib import import_module

import numpy as np
import pytest

from fedcompress.errors import ConfigError, LayoutError
from fedcompress.merging import InMemoryUpdates
from fedcompress.merging.data_driven import Dense, Factored, column_weights, movement, widen, widen_factors
from fedcompress.types import Layout, Tensors, TensorSpec
from tests.support import equal, lora_layout, normal

ROWS, COLUMNS = 12, 20
DRAW = np.random.default_rng(0)
WEIGHT = DRAW.standard_normal((ROWS, COLUMNS))
CHANGES = [0.1 * DRAW.standard_normal((ROWS, COLUMNS)) for _ in range(3)]


def digits(weight: np.ndarray, change: np.ndarray) -> tuple[list[float], list[float]]:
    """The definitions as they stand, in fifty digits."""
    lengths, directions = [], []
    with localcontext() as context:
        context.prec = 50
        for w, d in zip(weight.T.tolist(), change.T.tolist(), strict=True):
            old = [Decimal(x) for x in w]
            new = [x + Decimal(y) for x, y in zip(old, d, strict=True)]
            before, after = (sum(x * x for x in v).sqrt() for v in (old, new))
            lengths.append(float(abs(after - before)))
            directions.append(float(1 - sum(x * y for x, y in zip(old, new, strict=True)) / (before * after)))
    return lengths, directions


def naive(weight: np.ndarray, change: np.ndarray) -> np.ndarray:
    """1 - cos in float32, as the released code has it."""
    old, new = weight.astype(np.float32), (weight + change).astype(np.float32)
    return 1 - (old / np.linalg.norm(old, axis=0) * (new / np.linalg.norm(new, axis=0))).sum(axis=0)


def ranks(values: list[float] | np.ndarray) -> list[int]:
    return np.argsort(np.argsort(values)).tolist()


@pytest.mark.parametrize("size", [1e-6, 3e-4, 1e-2, 1.0, 3.0])
def test_movement_equals_fifty_digits(size: float) -> None:
    """Of a LoRA update, ranks are the same too, where 1 - cos in float32 is noise."""
    weight = DRAW.standard_normal((96, 64)).astype(np.float32).astype(float)
    change = DRAW.standard_normal((96, 4)) @ DRAW.standard_normal((4, 64))
    change = (change * (size * np.linalg.norm(weight) / np.linalg.norm(change))).astype(np.float32).astype(float)
    exact_lengths, exact = digits(weight, change)
    lengths, directions = movement(weight, change)
    assert np.allclose(directions, exact, rtol=1e-9, atol=0)
    assert np.allclose(lengths, exact_lengths, rtol=1e-7, atol=0)
    assert ranks(directions) == ranks(exact)
    assert ranks(lengths) == ranks(exact_lengths)
    if size <= 3e-4:
        apart = np.corrcoef(ranks(naive(weight, change)), ranks(exact))[0, 1]
        assert apart < 0.9


def test_movement_of_columns_that_vanish_or_turn_round() -> None:
    weight = np.array([[0.0, 0, 3, 3, 3, 3], [0, 0, 4, 4, 4, 4]])
    change = np.array([[0.0, 3, -3, 0, -6, 3], [0, 4, -4, 0, -8, 4]])
    lengths, directions = movement(weight, change)
    assert lengths.tolist() == [0, 5, 5, 0, 0, 5]
    assert np.allclose(directions, [0, 1, 1, 0, 2, 0], atol=1e-15)


def slow_scores(values: list[float]) -> list[float]:
    """Rank / count by counting who is below; equal ones share."""
    return [(sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2) / len(values) for v in values]


def slow_calibrated(scores: list[list[float]], t: float, s: float) -> np.ndarray:
    out = np.zeros((len(scores), len(scores[0])))
    for site, own in enumerate(scores):
        for place, score in enumerate(own):
            important = score > t * (sum(own) / len(own)) + 1e-12
            out[site, place] = s if important else math.exp(score) / sum(math.exp(o[place]) for o in scores)
    return out


def slow_weights(weight: np.ndarray, changes: list[np.ndarray], t: float, s: float) -> np.ndarray:
    moved = [digits(weight, change) for change in changes]
    return sum(slow_calibrated([slow_scores(list(m[kind])) for m in moved], t, s) for kind in (0, 1)) / 2


@pytest.mark.parametrize(("t", "s"), [(1.0, 1.0), (0.5, 2.0), (1.5, 1 / 3), (0.0, 1.0), (100.0, 1.0)])
def test_weights_equal_the_loop(t: float, s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("fedcompress.merging.data_driven.widen"), "COLUMNS", 7)
    found = column_weights(WEIGHT, [Dense(c) for c in CHANGES], t, s)
    assert np.allclose(found, slow_weights(WEIGHT, CHANGES, t, s), atol=1e-12)


def test_columns_that_tie_share_their_mean_rank() -> None:
    """Others of each site, since a softmax does not see what it has in common."""
    weight = np.repeat(WEIGHT[:, :1], COLUMNS, axis=1)
    changes = [c[:, np.arange(COLUMNS) % kinds] for c, kinds in zip(CHANGES, (3, 7, 20), strict=True)]
    found = column_weights(weight, [Dense(c) for c in changes], 1.3, 0.5)
    assert np.allclose(found, slow_weights(weight, changes, 1.3, 0.5), atol=1e-12)


def test_where_columns_are_important() -> None:
    """The column that moves most gets s; with a t that nothing reaches all weights add up to 1."""
    change = np.full((ROWS, COLUMNS), 1e-3)
    change[0, 5] = 1.0
    weights = column_weights(np.abs(WEIGHT), [Dense(change), Dense(CHANGES[1])], 1.0, 0.7)
    assert weights[0, 5] == 0.7
    assert np.allclose(column_weights(WEIGHT, [Dense(c) for c in CHANGES], 100.0).sum(axis=0), 1)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_adversarial_sizes(size: float) -> None:
    """All zeros get equal weights in every column, and one huge update does not drown the others' ranks."""
    weights = column_weights(WEIGHT, [Dense(size * CHANGES[0]), Dense(size * CHANGES[1])])
    assert np.isfinite(weights).all()
    if not size:
        assert (weights == 0.5).all()
    zero = column_weights(np.zeros_like(WEIGHT), [Dense(size * c) for c in CHANGES])
    assert np.isfinite(zero).all()
    mixed = column_weights(WEIGHT, [Dense(size * CHANGES[0]), Dense(CHANGES[1])])
    alone = column_weights(WEIGHT, [Dense(CHANGES[1])])
    assert (mixed[1] == 1).sum() >= 1
    assert (alone == 1).all()


LAYOUT = Layout(
    (
        TensorSpec(name="w", shape=(ROWS, COLUMNS)),
        TensorSpec(name="conv", shape=(4, 3, 2)),
        TensorSpec(name="table", shape=(COLUMNS, ROWS)),
        TensorSpec(name="norm", shape=(9,)),
        TensorSpec(name="scalar", shape=()),
        TensorSpec(name="empty", shape=(0, 3)),
    )
)
BASE = normal(LAYOUT, 0)
UPDATES = [normal(LAYOUT, s, 0.01) for s in (1, 2, 3)]


def test_tensors_of_every_shape() -> None:
    found = widen(BASE, InMemoryUpdates(LAYOUT, UPDATES), transposed=["table"])
    LAYOUT.check(found, what="merged")
    for name, turn, shape in (("w", False, (ROWS, COLUMNS)), ("conv", False, (4, 6)), ("table", True, (COLUMNS, ROWS))):
        base, *changes = (v[name].reshape(shape).astype(float) for v in (BASE, *UPDATES))
        base, changes = (base.T, [c.T for c in changes]) if turn else (base, changes)
        weights = slow_weights(base, changes, 1.0, 1.0)
        loop = sum(c * w for c, w in zip(changes, weights, strict=True))
        assert np.allclose(found[name].reshape(shape), loop.T if turn else loop, atol=1e-7), name
    for name in ("norm", "scalar"):
        flat = [np.abs(u[name].astype(float)).ravel().tolist() for u in UPDATES]
        weights = slow_calibrated(flat, 1.0, 1.0)
        loop = sum(u[name].ravel() * w for u, w in zip(UPDATES, weights, strict=True))
        assert np.allclose(found[name].ravel(), loop, atol=1e-7), name
    straight = widen(BASE, InMemoryUpdates(LAYOUT, UPDATES))
    assert not np.allclose(straight["table"], found["table"], atol=1e-5)


def test_one_update_returns_itself_and_many_equal_ones_add_up_in_half() -> None:
    assert equal(widen(BASE, InMemoryUpdates(LAYOUT, UPDATES[:1])), UPDATES[0])
    twice = widen(BASE, InMemoryUpdates(LAYOUT, [UPDATES[0]] * 2))["w"] / UPDATES[0]["w"]
    assert set(np.round(np.unique(twice), 3).tolist()) == {1.0, 1.5, 2.0}
    assert np.allclose(widen(BASE, InMemoryUpdates(LAYOUT, [UPDATES[0]] * 2), s=0.5)["w"], UPDATES[0]["w"])


def test_the_order_of_columns_does_not_matter() -> None:
    """Not even where columns tie, which ranks by position would decide."""
    change = np.repeat(CHANGES[0][:, :5], 4, axis=1)
    weight = np.repeat(WEIGHT[:, :5], 4, axis=1)
    order = np.random.default_rng(1).permutation(COLUMNS)
    one = column_weights(weight, [Dense(change), Dense(CHANGES[1])])
    two = column_weights(weight[:, order], [Dense(change[:, order]), Dense(CHANGES[1][:, order])])
    assert (one[:, order] == two).all()


def lora() -> tuple[Layout, Tensors, list[Tensors], dict[str, np.ndarray]]:
    layout = lora_layout(modules=2)
    base, updates = normal(layout, 0, 0.3), [normal(layout, s, 1e-4) for s in (1, 2, 3)]
    return layout, base, updates, {f"m{i}.weight": DRAW.standard_normal((24, 24)).astype(np.float32) for i in (0, 1)}


def test_factors_are_merged_like_the_dense_changes() -> None:
    layout, base, updates, weights = lora()
    found = widen_factors(weights, base, InMemoryUpdates(layout, updates), scaling=2.0)
    for module in ("m0", "m1"):
        a0, b0 = (base[f"{module}.lora_{f}.weight"].astype(float) for f in "AB")
        dense = [
            2 * ((b0 + u[f"{module}.lora_B.weight"]) @ (a0 + u[f"{module}.lora_A.weight"]) - b0 @ a0) for u in updates
        ]
        shares = slow_weights(weights[f"{module}.weight"].astype(float), dense, 1.0, 1.0)
        loop = sum(d * w for d, w in zip(dense, shares, strict=True))
        assert found[f"{module}.weight"].left.shape == (24, 24)
        assert np.allclose(found[f"{module}.weight"].dense(), loop, rtol=1e-6, atol=1e-12)


def test_bad_inputs() -> None:
    layout, base, updates, weights = lora()
    held = InMemoryUpdates(layout, updates)
    bad = weights | {"m1.weight": np.full((24, 24), np.nan, np.float32)}
    for given, words in (
        ({"m0.weight": weights["m0.weight"]}, r"weights: missing \['m1.weight'\]"),
        (
            weights | {"m1.weight": np.zeros((24, 3), np.float32)},
            r"weights\.m1\.weight: \[24, 3\]: must have the shape",
        ),
        (bad, r"weights\.m1\.weight: NaN or infinity: must be finite"),
    ):
        with pytest.raises(ConfigError, match=words):
            widen_factors(given, base, held)
    for options in ({"t": -1.0}, {"s": float("nan")}, {"t": 101.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            widen(base, held, **options)
    with pytest.raises(ConfigError, match=r"transposed: \['head.bias'\]"):
        widen(base, held, transposed=["head.bias"])
    with pytest.raises(ConfigError, match="updates: 0"):
        widen(base, InMemoryUpdates(layout, []))
    with pytest.raises(ConfigError, match=r"changes\.1: \[2, 2\]"):
        column_weights(WEIGHT, [Dense(CHANGES[0]), Factored(np.ones((2, 1)), np.ones((1, 2)))])
    with pytest.raises(LayoutError, match="widen: base"):
        widen(UPDATES[0], held)
