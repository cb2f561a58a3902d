"""Every LoRA form for rounds against the dense mean of the products."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.errors import ConfigError
from fedcompress.merging import RULES, InMemoryUpdates, Merger, parse_rule
from fedcompress.merging.base import Module
from fedcompress.merging.table import FOLDERS_ONLY
from tests.support import lora_layout, normal

LORA = [name for name, row in RULES.items() if row.kind == "lora"]
ROWS, COLUMNS, RANK = 20, 28, 4


def module(sites: int = 3, *, freeze: str = "", noise: float = 0.3, shape: tuple[int, int] = (ROWS, COLUMNS)) -> Module:
    """Sites that started from one pair of factors."""
    generator = np.random.default_rng(7)
    a0, b0 = generator.standard_normal((RANK, shape[1])), generator.standard_normal((shape[0], RANK))
    factors = [
        (
            a0 + (0 if freeze == "a" else noise) * generator.standard_normal(a0.shape),
            b0 + (0 if freeze == "b" else noise) * generator.standard_normal(b0.shape),
        )
        for _ in range(sites)
    ]
    weights = np.arange(1.0, sites + 1)
    return Module("m", a0, b0, factors, weights / weights.sum())


def mean_product(m: Module) -> np.ndarray:
    return sum((w * b @ a for w, (a, b) in zip(m.weights, m.factors, strict=True)), np.zeros((m.b0.shape[0], 1)))


def error(m: Module, rule: str, round_: int = 1) -> float:
    a, b = parse_rule(rule).pair(m, round_)
    assert a.shape == m.a0.shape
    assert b.shape == m.b0.shape
    target = mean_product(m)
    return float(np.linalg.norm(b @ a - target) / np.linalg.norm(target))


def least(m: Module) -> float:
    s = np.linalg.svd(mean_product(m), compute_uv=False)
    return float(np.linalg.norm(s[RANK:]) / np.linalg.norm(s))


def test_svd_forms_have_the_least_error_of_the_rank() -> None:
    m = module()
    for rule in ("lora-svd", "lora-procrustes"):
        assert error(m, rule) == pytest.approx(least(m), rel=1e-9)
    assert least(m) > 0.01


def test_forms_in_the_order_of_their_error() -> None:
    """Each has a weaker constraint than the next."""
    m = module()
    svd, best, once, ridge, fedit = (
        error(m, r) for r in ("lora-svd", "lora-als(sweeps=30,ridge=1e-9)", "lora-als(sweeps=1)", "lora-ridge", "fedit")
    )
    assert best == pytest.approx(svd, rel=1e-6)  # it converges to the optimum
    assert svd * (1 + 1e-6) < once < 0.95 * ridge < 0.9 * fedit


def test_ffa_is_exact_with_a_frozen_and_drops_what_was_changed() -> None:
    assert error(module(freeze="a"), "ffa") < 1e-14
    m = module()
    a, b = parse_rule("ffa").pair(m, 1)
    assert (a == m.a0).all()
    assert np.allclose(b, sum(w * own for w, (_, own) in zip(m.weights, m.factors, strict=True)))
    assert error(m, "ffa") > 0.05


def test_rolora_is_exact_in_turns() -> None:
    odd, even = module(freeze="a"), module(freeze="b")
    assert error(odd, "rolora", 1) < 1e-14
    assert error(even, "rolora", 2) < 1e-14
    assert error(odd, "rolora", 2) > 0.05
    assert error(even, "rolora", 3) > 0.05


def test_fedit_is_the_mean_rule() -> None:
    layout = lora_layout()
    base, updates = normal(layout, 0), [normal(layout, s) for s in (1, 2, 3)]
    one, two = (
        Merger(rule=parse_rule(r), layout=layout).merge(base, [1.0, 2.0, 3.0], InMemoryUpdates(layout, updates))
        for r in ("fedit", "mean")
    )
    for name in one:
        assert np.allclose(one[name], two[name], atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-3, 0.01, 5.0])
def test_lora_fair_is_the_penalised_least_squares(penalty: float) -> None:
    m = module()
    a, b = parse_rule(f"lora-fair(penalty={penalty})").pair(m, 1)
    mean_a, mean_b = (sum(w * f[i] for w, f in zip(m.weights, m.factors, strict=True)) for i in (0, 1))
    rows = np.vstack([mean_a.T, np.sqrt(penalty) * np.eye(RANK)])
    right = np.vstack([(mean_product(m) - mean_b @ mean_a).T, np.zeros((RANK, ROWS))])
    assert np.allclose(a, mean_a)
    assert np.allclose(b, mean_b + np.linalg.lstsq(rows, right, rcond=None)[0].T)


def test_procrustes_keeps_the_gauge_and_svd_does_not() -> None:
    """Sites that moved little from balanced factors: new factors are near the published ones."""
    m = module(noise=0.02)
    near, _ = parse_rule("lora-procrustes").pair(m, 1)
    far, _ = parse_rule("lora-svd").pair(m, 1)
    size = np.linalg.norm(m.a0)
    assert np.linalg.norm(near - m.a0) < 0.35 * size
    assert np.linalg.norm(far - m.a0) > 0.7 * size
    # no other turn is nearer
    generator = np.random.default_rng(0)
    for _ in range(50):
        turn = np.linalg.qr(np.eye(RANK) + 0.1 * generator.standard_normal((RANK, RANK)))[0]
        turn *= np.sign(np.diag(turn))
        assert np.linalg.norm(turn @ near - m.a0) >= np.linalg.norm(near - m.a0)


@pytest.mark.parametrize("rule", LORA)
@pytest.mark.parametrize("case", ["zero", "zero-b", "tall", "rank0", "one"])
def test_degenerate_factors_give_finite_ones(rule: str, case: str) -> None:
    generator = np.random.default_rng(1)
    rank, rows, columns = {"tall": (12, 5, 3), "rank0": (0, 6, 6)}.get(case, (3, 6, 7))
    factors = [
        (generator.standard_normal((rank, columns)), generator.standard_normal((rows, rank)))
        for _ in range(1 if case == "one" else 3)
    ]
    if case in ("zero", "zero-b"):
        factors = [(a * (case != "zero"), b * 0) for a, b in factors]
    m = Module("m", *factors[0], factors, np.full(len(factors), 1 / len(factors)))
    a, b = parse_rule(rule).pair(m, 1)
    assert (a.shape, b.shape) == ((rank, columns), (rows, rank))
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    if case in ("zero", "zero-b"):
        assert np.allclose(b @ a, 0)


@pytest.mark.parametrize("rule", LORA)
def test_arguments_are_not_changed(rule: str) -> None:
    m = module()
    arrays = [m.a0, m.b0, *(x for pair in m.factors for x in pair)]
    before = [x.copy() for x in arrays]
    a, b = parse_rule(rule).pair(m, 2)
    a += 1
    b += 1
    assert all((x == y).all() for x, y in zip(arrays, before, strict=True))


@pytest.mark.parametrize("rule", LORA)
def test_equal_updates_keep_their_product(rule: str) -> None:
    one = module(1)
    m = Module("m", one.factors[0][0], one.factors[0][1], list(one.factors) * 3, np.full(3, 1 / 3))
    assert error(m, rule) < 1e-9


@pytest.mark.parametrize("form", FOLDERS_ONLY)
def test_forms_that_change_the_rank_are_refused_in_rounds(form: str) -> None:
    from fedcompress.config.run_config import RunConfig

    with pytest.raises(ConfigError, match=rf"rule: {form}: is for `fedcompress merge`.*rank"):
        parse_rule(form)
    with pytest.raises(ConfigError, match="rank"):
        RunConfig(rule=form, state_dir="s", initial_adapter="a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lora-als(sweeps=0)", "from 1 to 100"),
        ("lora-als(ridge=0)", "from 1e-9 to 1e6"),
        ("lora-fair(penalty=0)", "from 1e-9 to 1e6"),
    ],
)
def test_bad_parameters(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_rule(text)
