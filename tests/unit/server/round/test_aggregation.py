"""From admitted updates to the next version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError
from fedcompress.types import state_digest, zeros
from fedcompress.wire import Envelope
from server.ledger.ledger import Ledger
from server.ledger.versions import PublishedState
from server.round.aggregation import AdmittedUpdate, aggregate_round
from tests.support import normal, update_header
from tests.unit.server.samples import BASE, CODEC, LAYOUT, grow


def test_next_version_does_not_depend_on_arrival_and_keeps_the_residual(ledger: Ledger) -> None:
    published = grow(ledger, 2, CODEC)
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", rule="mean")
    admitted = []
    for number, site in enumerate(("east", "north", "west")):
        header = replace(update_header(LAYOUT, published.state), site=site, examples=7 * (number + 1))
        envelope = Envelope(header=header, sections=(), digest=b"")
        admitted.append(AdmittedUpdate(site, envelope, normal(LAYOUT, 50 + number)))
    one, data = aggregate_round(config, LAYOUT, published, admitted, 3, blobs=ledger.blobs)
    two, again = aggregate_round(config, LAYOUT, published, admitted[::-1], 3, blobs=ledger.blobs)
    assert data == again
    assert one.digest == two.digest
    weights = np.array([7.0, 14.0, 21.0]) / 42
    for name in one.state:
        merged = sum(w * a.tensors[name].astype(np.float64) for w, a in zip(weights, admitted, strict=True))
        sent = one.state[name].astype(np.float64) - published.state[name]
        assert np.allclose(sent + one.residual[name], merged + published.residual[name], atol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("examples", [7, 14, 21]),
        ("processed", [7, 14, 16]),  # one step of 16 of two: the third made one of them
        ("uniform", [1, 1, 1]),
        ("inverse-loss", [1, 1 / 2, 1 / 3]),
        ("given(sites=west:5|east:1|north:3)", [1, 3, 5]),
    ],
)
def test_next_version_weighs(ledger: Ledger, weighting: str, expected: list[float]) -> None:
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", rule="mean", weighting=weighting, steps=2)
    published = PublishedState(0, state_digest(LAYOUT, BASE), BASE, zeros(LAYOUT))
    admitted = []
    for number, site in enumerate(("east", "north", "west"), 1):
        metrics = {"train_loss": float(number)} | ({"steps_done": 1.0} if site == "west" else {})
        header = replace(update_header(LAYOUT, BASE), site=site, examples=7 * number, metrics=metrics)
        admitted.append(AdmittedUpdate(site, Envelope(header=header, sections=(), digest=b""), normal(LAYOUT, number)))
    one, _ = aggregate_round(config, LAYOUT, published, admitted, 1, blobs=ledger.blobs)
    for name in one.state:
        merged = sum(w * a.tensors[name].astype(np.float64) for w, a in zip(expected, admitted, strict=True))
        sent = one.state[name].astype(np.float64) - BASE[name]
        assert np.allclose(sent + one.residual[name], merged / sum(expected), atol=1e-5)


def test_next_version_says_which_number_is_missing(ledger: Ledger) -> None:
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", weighting="inverse-loss")
    envelope = Envelope(header=update_header(LAYOUT, BASE), sections=(), digest=b"")
    published = PublishedState(0, state_digest(LAYOUT, BASE), BASE, zeros(LAYOUT))
    admitted = [AdmittedUpdate("north", envelope, normal(LAYOUT, 1))]
    with pytest.raises(ConfigError, match=r"weighting\.losses\[0\]: None: must be a finite number above 0"):
        aggregate_round(config, LAYOUT, published, admitted, 1, blobs=ledger.blobs)
