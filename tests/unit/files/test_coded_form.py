"""What is coded in another form comes back exactly, and forms that lie are refused."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedcompress import errors
from fedcompress.chunks import TensorSlice
from fedcompress.files.coded_form import WHOLE, CodedForm, Exponents, parse_form, read_exact, write_exact
from fedcompress.files.manifest import Manifest, parse_manifest
from fedcompress.types import Layout, TensorSpec

LAYOUT = Layout(
    (
        TensorSpec(name="a", shape=(2, 3)),
        TensorSpec(name="b", shape=(4, 2), dtype="bfloat16"),
        TensorSpec(name="c", shape=(), dtype="float16"),
        TensorSpec(name="d", shape=(3,)),
        TensorSpec(name="e", shape=(0, 2)),
    )
)
FORM = CodedForm(
    exact=frozenset({"c", "e"}),
    ones=frozenset({"d"}),
    exponents={"a": Exponents(axis=0, values=(3, -120)), "b": Exponents(axis=WHOLE, values=(7,))},
)


def values() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {t.name: np.float32(draw.integers(-50, 50, t.shape)) / 64 for t in LAYOUT.tensors}


def test_forms_are_inverted_exactly() -> None:
    tensors = values()
    coded = FORM.apply(tensors)
    assert list(coded) == [t.name for t in FORM.coded_layout(LAYOUT).tensors] == ["a", "b", "d"]
    assert np.array_equal(coded["a"][0], 8 * tensors["a"][0])
    assert np.array_equal(coded["b"], 128 * tensors["b"])
    assert np.array_equal(coded["d"], tensors["d"] - 1)
    exact = read_exact(LAYOUT, FORM.exact, write_exact(LAYOUT, FORM.exact, tensors))
    assert {n: v.shape for n, v in exact.items()} == {"c": (), "e": (0, 2)}
    again = FORM.restore(LAYOUT, coded, exact)
    assert list(again) == list(tensors)
    assert all(np.array_equal(tensors[n], again[n]) for n in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_exact_sections_hold_any_value(dtype: str) -> None:
    layout = Layout((TensorSpec(name="w", shape=(5, 7), dtype=dtype),))
    tensors = {"w": np.array([0.5, -0.0, 2**-14, -1.25, 3] * 7, np.float32).reshape(5, 7)}
    section = write_exact(layout, frozenset("w"), tensors)
    found = read_exact(layout, frozenset("w"), section)["w"]
    assert found.tobytes() == tensors["w"].tobytes()
    for bad in (b"", b"x", section[:-1], section + b"x", zlib.compress(b""), zlib.compress(bytes(10**6))):
        with pytest.raises(errors.PayloadError, match="section: exact"):
            read_exact(layout, frozenset("w"), bad)


def test_a_manifest_has_a_version_for_its_form() -> None:
    manifest = Manifest(
        format="safetensors", pieces=[TensorSlice(spec=t) for t in LAYOUT.tensors], part=0, parts=1, after=""
    )
    assert manifest.to_section()[0] == 1
    formed = replace(manifest, form=FORM)
    section = formed.to_section()
    assert section[0] == 2
    assert parse_manifest(section) == formed
    assert parse_manifest(b"\x02" + manifest.to_section()[1:]) == manifest
    with pytest.raises(errors.PayloadError, match="must not be in version 1"):
        parse_manifest(b"\x01" + section[1:])


@pytest.mark.parametrize(
    "entries",
    [
        *({key: bad} for key in ("exact", "ones") for bad in ([5], [-1], [0, 0], ["a"], "a", [True], 1, [None], [0.0])),
        *(
            {"exponents": bad}
            for bad in ([[0]], 1, [[0, 0, [1]]], [[0, 0, [1, 2, 3]]], [[0, 2, [1, 2, 3]]], [[0, -2, [1]]])
        ),
        *({"exponents": [[0, 0, bad]]} for bad in ([1, 121], [1, -121], [1, True], [1, 1.0], 1, "ab")),
        {"exponents": [[0, WHOLE, [1]], [0, WHOLE, [1]]]},
        {"exponents": [[9, WHOLE, [1]]]},
        {"exponents": [[2, 0, [1]]]},
        {"exact": [0], "ones": [0]},
        {"exact": [0], "exponents": [[0, WHOLE, [1]]]},
        {"ones": [0], "exponents": [[0, WHOLE, [1]]]},
    ],
)
def test_forms_that_are_malformed(entries: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_form(entries, LAYOUT)


def test_values_beyond_all_numbers() -> None:
    layout = Layout(LAYOUT.tensors[:1])
    form = CodedForm(exponents={"a": Exponents(axis=WHOLE, values=(-120,))})
    with pytest.raises(errors.PayloadError, match="a: contains NaN or infinity"):
        form.restore(layout, {"a": np.full((2, 3), 1e10, np.float32)}, {})
