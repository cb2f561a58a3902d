"""Admission, downlinks, ledger, pooling, sampling, next version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedcompress.errors import AdmissionError
from fedcompress.merging.weighting import InverseLoss
from fedcompress.types import Tensors, l2_norm
from fedcompress.wire import Kind
from server.round import signatures
from server.round.admission import REASONS, admit_reply
from tests.support import lora_layout
from tests.unit.server.samples import EXPECTED, LAYOUT, update

OTHER = lora_layout(modules=1)
CASES = {
    "malformed": update()[:-1],
    "kind": update(kind=Kind.REPORT),
    "run": update(run="other"),
    "round": update(round=2),
    "base-digest": update(base_digest=b"x" * 32),
    "layout-mismatch": update(OTHER),
    "base-model": update(base_fingerprint=b"g" * 32),
    "adapter": update(adapter_digest=b"b" * 32),
    "codec": update(codec="none"),
    "examples": update(examples=0),
    "metrics": update(metrics={"eval_examples": 1e300}),
    "weight": update(metrics={"train_loss": 0.0}),
    "duplicate-site": update(site="south"),
    "no-site": update(site=""),
}


def test_every_reason_has_a_case() -> None:
    """Those of signatures are in test_trust."""
    assert set(CASES) | set(signatures.REASONS) == set(REASONS)


@pytest.mark.parametrize("code", CASES)
def test_refused(code: str) -> None:
    is_refused(CASES[code], code)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("examples", {"examples": (1 << 64) - 1}),  # SQLite holds less than 2^63
        ("examples", {"examples": (1 << 53) + 1}),
        ("metrics", {"metrics": {"seconds": -1e300}}),
        ("metrics", {"metrics": {"seconds_train": -1.0}}),
        ("metrics", {"metrics": {"eval_examples": -1.0}}),
        ("metrics", {"metrics": {"eval_examples": 10.0, "eval_correct": 11.0}}),
        ("metrics", {"metrics": {"eval_examples": 10.0, "eval_correct": -1.0}}),
        ("metrics", {"metrics": {"eval_correct": 1.0}}),
        ("metrics", {"metrics": {"eval_examples": 10.0, "eval_loss_sum": -1e-3}}),
        ("metrics", {"metrics": {"eval_examples": 10.0, "alone_correct": 10.5}}),
        ("metrics", {"metrics": {"eval_rows": 3.0, "eval_exact": 4.0}}),
        ("metrics", {"metrics": {"train_loss": -2.0}}),
        ("metrics", {"metrics": {"steps_done": 21.0}}),
        ("metrics", {"metrics": {"steps_done": -3.0}}),
        ("weight", {"metrics": {"train_loss": 5e-324}}),  # one over it is infinite
        ("weight", {"metrics": {"train_loss": 1e-300}}),  # finite, and leaves nothing for the others
    ],
)
def test_numbers_that_would_outweigh_or_overflow_are_refused(code: str, changes: dict[str, Any]) -> None:
    is_refused(update(**changes), code)


def test_an_update_of_no_steps_weighs_nothing_and_is_refused() -> None:
    with pytest.raises(AdmissionError, match="weight: north"):
        admit_reply(update(metrics={"steps_done": 0.0}), EXPECTED, Kind.UPDATE, set())


def is_refused(data: bytes, code: str) -> None:
    expected = replace(EXPECTED, weighting=InverseLoss()) if code == "weight" else EXPECTED
    with pytest.raises(AdmissionError) as caught:
        admit_reply(data, expected, Kind.UPDATE, {"south"})
    assert caught.value.code == code


def test_admitted() -> None:
    kept: dict[str, list[Tensors]] = {}
    envelope, norm = admit_reply(
        update(), EXPECTED, Kind.UPDATE, {"south"}, keep=lambda n, parts: kept.update({n: list(parts)})
    )
    assert envelope.header.site == "north"
    (values,) = kept[envelope.digest.hex()]
    LAYOUT.check(values, what="admitted")
    assert norm == pytest.approx(l2_norm(values.values()), rel=1e-12)
    first = replace(EXPECTED, base_fingerprint=b"")
    admit_reply(CASES["base-model"], first, Kind.UPDATE, set())
