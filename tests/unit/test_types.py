"""Layouts that are nearly right; sums at the end of float32."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedcompress.codecs import ErrorFeedback
from fedcompress.errors import ConfigError, LayoutError, NonFiniteError, StateError
from fedcompress.types import Layout, TensorSpec, add, combine, from_bytes, l2_norm, state_digest, subtract, to_bytes
from tests.support import equal, lora_layout, normal

LAYOUT = lora_layout()


@pytest.mark.parametrize(
    "text",
    [
        '[["a",[1e999],"float32","head"]]',
        '[["a",[NaN],"float32","head"]]',
        '[["a",[2.5],"float32","head"]]',
        '[["a",[2.0],"float32","head"]]',
        '[["a",[true],"float32","head"]]',
        '[["a","12","float32","head"]]',
        '[["a",{"2":1},"float32","head"]]',
        '[[1,[2],"float32","head"]]',
        '[["a",[2],1,"head"]]',
        '[["a",[2],"float32",null]]',
        '[["a",[2],"float32","head",1]]',
        '[["\\ud800",[2],"float32","lora_a"]]',
        "[" * 100_000,
        "null",
        '"a"',
    ],
)
def test_layouts_are_read_strictly(text: str) -> None:
    with pytest.raises(LayoutError):
        Layout.from_json(text)


def test_names_are_text() -> None:
    assert Layout.from_json('[["\\u00e4\\ud83d\\ude00",[],"float32","head"]]').tensors[0].name == "\u00e4\U0001f600"
    with pytest.raises(ConfigError, match=r"layout.name"):
        TensorSpec(name="\udfff", shape=())


def test_many_equal_names_are_named_quickly() -> None:
    twins = (TensorSpec(name="x", shape=()),) * 100_000
    with pytest.raises(LayoutError, match=r"named twice: \['x'\]$"):
        Layout(twins)


def test_overflow_gives_infinity_without_a_warning() -> None:
    """Warnings are errors here; the next check refuses the infinity and names the tensor."""
    layout = Layout((TensorSpec(name="w", shape=(2,)),))
    huge = {"w": np.full(2, 3e38, np.float32)}
    for total in (add(huge, huge), ErrorFeedback().target(huge, huge)):
        assert np.isinf(total["w"]).all()
        with pytest.raises(NonFiniteError, match="w: contains NaN or infinity"):
            layout.check(total, what="sum")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": np.zeros(2, np.float32)}, r"names differ: missing \['b'\], extra \[\]"),
        (dict.fromkeys("abc", np.zeros(2, np.float32)), r"names differ: missing \[\], extra \['c'\]"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros((2, 1), np.float32)}, r"b: shape \[2, 1\]: must be \[2\]"),
        ({"a": np.zeros((), np.float32), "b": np.zeros(2, np.float32)}, r"a: shape \[\]: must be \[2\]"),
    ],
)
def test_states_that_differ_are_refused(other: dict[str, np.ndarray], words: str) -> None:
    state = dict.fromkeys("ab", np.ones(2, np.float32))
    feedback = ErrorFeedback()
    for name, do in (
        ("add", add),
        ("subtract", subtract),
        ("combine", lambda a, b: combine([a, b], [1, 1])),
        ("error feedback", feedback.target),
        ("subtract", feedback.residual),
    ):
        with pytest.raises(LayoutError, match=f"^{name}: {words}"):
            do(state, other)


def test_weighted_sums_of_states() -> None:
    """Also with negative weights, and in another order of names."""
    one, two = normal(LAYOUT, 1), normal(LAYOUT, 2)
    found = combine([one, dict(reversed(two.items())), one], [1, -0.5, 2])
    assert list(found) == list(one)
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, 3 * one[name] - two[name] / 2, rtol=1e-6, atol=1e-6)
    assert not any(v.any() for v in combine([one, one], [1, -1]).values())
    for states, weights in (([one], [1, 1]), ([], []), ([one], [np.inf])):
        with pytest.raises(ConfigError, match=r"weights: .*finite numbers"):
            combine(states, weights)


def test_norm_of_huge_values_is_finite() -> None:
    assert l2_norm([np.full(4, 3e38, np.float32)]) == pytest.approx(6e38, rel=1e-6)
    assert l2_norm([]) == 0


def test_layout_json_and_digest() -> None:
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT
    one = Layout((TensorSpec(name="a", shape=(2, 3), dtype="bfloat16", group="lora_a"),))
    assert one.to_json() == '[["a",[2,3],"bfloat16","lora_a"]]'
    assert one.digest == hashlib.sha256(one.to_json().encode()).digest()
    assert (one.numel, one.plain_bytes(2)) == (6, 12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '[["a"]]',
        '[["a",[2],"int4","head"]]',
        '[["a",[2],"float32","x"]]',
        '[["",[2],"float32","head"]]',
        '[["a",[-1],"float32","head"]]',
        '[["a",[2],"float32","head"],["a",[2],"float32","head"]]',
        '[["a",[1099511627777],"float32","head"]]',
    ],
)
def test_bad_layouts(text: str) -> None:
    with pytest.raises(LayoutError):
        Layout.from_json(text)


def test_check_names_the_tensor() -> None:
    values = normal(LAYOUT, 0)
    LAYOUT.check(values, what="x")
    with pytest.raises(LayoutError, match="names or order"):
        LAYOUT.check(dict(reversed(values.items())), what="x")
    values["head.bias"][0] = np.nan
    with pytest.raises(NonFiniteError, match=r"head\.bias"):
        LAYOUT.check(values, what="x")


def test_state_digest_sees_every_bit_but_the_sign_of_zero() -> None:
    values = normal(LAYOUT, 0)
    digest = state_digest(LAYOUT, values)
    values["head.bias"][1] = np.nextafter(values["head.bias"][1], np.float32(9))
    assert state_digest(LAYOUT, values) != digest
    zeros = {n: np.zeros_like(v) for n, v in values.items()}
    assert state_digest(LAYOUT, zeros) == state_digest(LAYOUT, {n: -v for n, v in zeros.items()})


def test_flat_bytes() -> None:
    values = normal(LAYOUT, 0)
    assert equal(from_bytes(to_bytes(values), LAYOUT), values)
    with pytest.raises(StateError, match="the layout needs"):
        from_bytes(to_bytes(values)[:-1], LAYOUT)
