"""Weights of sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from fedcompress.merging import WEIGHTINGS, InMemoryUpdates, Merger, parse_rule, parse_weighting, site_weights
from fedcompress.merging.weighting import limit_weights
from tests.support import lora_layout, normal

COLUMNS: dict[str, Any] = {"examples": [10, 30], "processed": [10, 16], "losses": [0.5, 1.0], "given": [3.0, 1.0]}
CALLS = {
    "examples": [10, 30],
    "given(sites=a:3|b:1)": [3, 1],
    "inverse-loss": [2, 1],
    "processed": [10, 16],
    "uniform": [1, 1],
}


def test_every_policy_is_tried() -> None:
    assert {parse_weighting(call).name for call in CALLS} == set(WEIGHTINGS)


@pytest.mark.parametrize("call", CALLS)
def test_policies(call: str) -> None:
    assert site_weights(parse_weighting(call), **COLUMNS) == CALLS[call]


@pytest.mark.parametrize("call", CALLS)
def test_old_updates_count_less(call: str) -> None:
    """FedAsync's polynomial."""
    stale = call.replace("(", "(stale=2,") if "(" in call else f"{call}(stale=2)"
    fresh, half = CALLS[call], parse_weighting(call)
    assert site_weights(parse_weighting(stale), staleness=[0, 3], **COLUMNS) == [fresh[0], fresh[1] / 16]
    assert site_weights(half, staleness=[3, 0], **COLUMNS) == [fresh[0] / 2, fresh[1]]
    assert site_weights(half, staleness=[0, 0], **COLUMNS) == fresh


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), None])
@pytest.mark.parametrize(
    ("call", "column"),
    [
        ("examples", "examples"),
        ("given(sites=a:1)", "given"),
        ("inverse-loss", "losses"),
        ("processed", "processed"),
    ],
)
def test_bad_numbers(call: str, column: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=rf"weighting\.{column}\[1\]: .*: must be a finite number above 0"):
        site_weights(parse_weighting(call), **{**COLUMNS, column: [1.0, bad]})


def test_columns_that_are_missing_or_short() -> None:
    with pytest.raises(ConfigError, match="weighting: inverse-loss: needs losses and staleness of all 2 sites"):
        site_weights(parse_weighting("inverse-loss"), [1, 2])
    with pytest.raises(ConfigError, match="of all 2 sites"):
        site_weights(parse_weighting("inverse-loss"), [1, 2], losses=[1.0])
    with pytest.raises(ConfigError, match="of all 2 sites"):
        site_weights(parse_weighting("uniform"), [1, 2], staleness=[1.0])
    for age in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"weighting\.staleness\[0\]"):
            site_weights(parse_weighting("uniform"), [1], staleness=[age])


def test_columns_that_are_not_needed_may_be_bad() -> None:
    assert site_weights(parse_weighting("uniform"), [0, 5], losses=[None, -1.0]) == [1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size", "must be one of"),
        ("examples(cap=0.5)", r"weighting\.examples\.cap: 0.5: must be 0 \(no limit\) or at least 1"),
        ("inverse-loss(cap=-1)", r"weighting\.inverse-loss\.cap"),
        ("uniform(stale=-1)", r"weighting\.uniform\.stale: -1.0: must be at least 0"),
        ("uniform(stale=inf)", "must be a number"),
        ("given", "needs sites"),
        ("given(sites=)", "joined by"),
        ("given(sites=a)", "above 0"),
        ("given(sites=a:1|a:2)", "each site once"),
        ("given(sites=a:0)", "above 0"),
        ("given(sites=a:nan)", "above 0"),
        ("given(sites=a:x)", "above 0"),
        ("given(sites=:1)", "each site once"),
    ],
)
def test_bad_policies(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_weighting(text)


@given(st.lists(st.floats(1e-9, 2.0**53), min_size=1, max_size=40), st.sampled_from([1.0, 3.0, 100.0]))
def test_no_claim_decides(weights: list[float], cap: float) -> None:
    limited = limit_weights(weights, cap)
    median = sorted(weights)[(len(weights) - 1) // 2]
    assert all(new <= min(old, cap * median) for new, old in zip(limited, weights, strict=True))
    assert max(limited) <= 2 / len(weights) * sum(limited) * (1 + 1e-9)
    largest = max(limited)  # who is not among the cut counts as before
    for new, old in zip(limited, weights, strict=True):
        assert new in (old, largest) or new == pytest.approx(largest)


@pytest.mark.parametrize("call", ["examples", "inverse-loss", "processed"])
def test_a_claim_of_one_site_of_five(call: str) -> None:
    columns = {"examples": [10.0] * 4 + [2.0**53], "processed": [10.0] * 4 + [2.0**53], "losses": [1.0] * 4 + [1e-15]}
    weights = site_weights(parse_weighting(call), **columns)
    assert weights[4] / sum(weights) == pytest.approx(0.4)
    uncapped = site_weights(parse_weighting(f"{call}(cap=0)"), **columns)
    assert uncapped[4] / sum(uncapped) > 0.999


def test_one_claim_does_not_move_a_robust_rule() -> None:
    """Honest sites send 0.01, one of five sends -0.05 and claims 2^53 examples."""
    layout = lora_layout(modules=1)
    honest, hostile = ({n: np.full_like(v, x) for n, v in normal(layout, 0).items()} for x in (0.01, -0.05))
    for call in ("examples", "inverse-loss", "processed"):
        columns = {"examples": [500.0] * 4 + [2.0**53], "processed": [320.0] * 4 + [2.0**53]}
        weights = site_weights(parse_weighting(call), losses=[0.5] * 4 + [1e-15], **columns)
        for rule in ("median", "geometric-median", "trimmed-mean(beta=0.4)", "krum(malicious=1)"):
            merger = Merger(rule=parse_rule(rule), layout=layout)
            merged = merger.merge(normal(layout, 1), weights, InMemoryUpdates(layout, [honest] * 4 + [hostile]))
            for name, values in merged.items():
                assert np.allclose(values, 0.01, atol=2e-3), (call, rule, name)
