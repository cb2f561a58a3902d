"""Weights of sites."""

from __future__ import annotations

from typing import Any

import pytest

from fedcompress.errors import ConfigError
from fedcompress.merging import WEIGHTINGS, parse_weighting, site_weights

COLUMNS: dict[str, Any] = {"examples": [10, 30], "processed": [10, 16], "losses": [0.5, 2.0], "given": [3.0, 1.0]}
CALLS = {
    "examples": [10, 30],
    "given(sites=a:3|b:1)": [3, 1],
    "inverse-loss": [2, 0.5],
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
