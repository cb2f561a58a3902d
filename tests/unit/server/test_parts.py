"""Admission, downlinks, ledger, pooling, sampling, next version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcompress.adapters import seeded_init
from fedcompress.codecs import CodecSpec
from fedcompress.config import RunConfig
from fedcompress.errors import AdmissionError, ConfigError, MismatchError, StateError
from fedcompress.merging.weights import InverseLoss
from fedcompress.pipeline import decode_state, encode_snapshot, encode_update
from fedcompress.types import Layout, Tensors, add, l2_norm, state_digest, zeros
from fedcompress.wire import Envelope, Kind, Limits, split_bundle, unpack
from server import trust
from server.admission import REASONS, Expected, admit
from server.evaluate import pool
from server.ledger import Ledger, Published
from server.publish import Downlinks
from server.sampling import choose
from server.strategy import Admitted, next_version
from tests.support import lora_layout, normal, update_header

LAYOUT = lora_layout()
BASE = normal(LAYOUT, 0)
CODEC = "lora-ternary"
EXPECTED = Expected(
    run="run",
    round=1,
    base_digest=state_digest(LAYOUT, BASE),
    layout=LAYOUT,
    adapter_digest=b"a" * 32,
    base_fingerprint=b"f" * 32,
    codec=CODEC,
)


def update(layout: Layout = LAYOUT, codec: str = CODEC, **changes: Any) -> bytes:
    header = update_header(layout, BASE if layout is LAYOUT else normal(layout, 0))
    header = replace(header, **{"adapter_digest": b"a" * 32, "base_fingerprint": b"f" * 32, **changes})
    return encode_update(normal(layout, 1), layout, CodecSpec.parse(codec), header)[0]


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
    assert set(CASES) | set(trust.REASONS) == set(REASONS)


@pytest.mark.parametrize("code", CASES)
def test_refused(code: str) -> None:
    is_refused(CASES[code], code)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("examples", {"examples": (1 << 64) - 1}),  # SQLite holds less than 2^63
        ("examples", {"examples": (1 << 53) + 1}),
        ("metrics", {"metrics": {"seconds": -1e300}}),
        ("weight", {"metrics": {"train_loss": 5e-324}}),  # one over it is infinite
        ("weight", {"metrics": {"train_loss": 1e-300}}),  # finite, and leaves nothing for the others
    ],
)
def test_numbers_that_would_outweigh_or_overflow_are_refused(code: str, changes: dict[str, Any]) -> None:
    is_refused(update(**changes), code)


def is_refused(data: bytes, code: str) -> None:
    expected = replace(EXPECTED, weighting=InverseLoss()) if code == "weight" else EXPECTED
    with pytest.raises(AdmissionError) as caught:
        admit(data, expected, Kind.UPDATE, {"south"})
    assert caught.value.code == code


def test_admitted() -> None:
    kept: dict[str, list[Tensors]] = {}
    envelope, norm = admit(
        update(), EXPECTED, Kind.UPDATE, {"south"}, keep=lambda n, parts: kept.update({n: list(parts)})
    )
    assert envelope.header.site == "north"
    (values,) = kept[envelope.digest.hex()]
    LAYOUT.check(values, what="admitted")
    assert norm == pytest.approx(l2_norm(values.values()), rel=1e-12)
    first = replace(EXPECTED, base_fingerprint=b"")
    admit(CASES["base-model"], first, Kind.UPDATE, set())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "")
    return ledger


def publish(ledger: Ledger, version: int, state: dict[str, Any], envelope: bytes) -> Published:
    published = Published(version, state_digest(LAYOUT, state), state, zeros(LAYOUT))
    with ledger.transaction():
        ledger.publish(version, published.digest, envelope, state, published.residual)
    return published


def grow(ledger: Ledger, versions: int, codec: str) -> Published:
    """Versions 0..n, by ``next_version`` on random updates."""
    start = seeded_init(LAYOUT, 1)
    published = publish(ledger, 0, start, encode_snapshot(start, LAYOUT, run="run", version=0, init_seed=1))
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", downlink_codec=codec)
    for version in range(1, versions + 1):
        envelope = Envelope(header=update_header(LAYOUT, published.state), sections=(), digest=b"")
        admitted = [Admitted("north", envelope, normal(LAYOUT, version))]
        published, data = next_version(config, LAYOUT, published, admitted, version, blobs=ledger.blobs)
        with ledger.transaction():
            ledger.publish(published.version, published.digest, data, published.state, published.residual)
    return published


def test_downlinks_lead_everybody_to_the_newest_version(ledger: Ledger) -> None:
    published = grow(ledger, 3, CODEC)
    downlinks = Downlinks(ledger, LAYOUT, published)
    states, state = {}, None
    for piece in ledger.envelopes(None):
        envelope, state = decode_state(piece, LAYOUT, state)
        states[envelope.header.version] = state
    for acked in (None, 0, 1, 2, 3):
        state = states.get(acked) if acked is not None else None
        for piece in split_bundle(downlinks.bundle(acked), Limits.for_numel(LAYOUT.numel)):
            header = unpack(piece, Limits.for_numel(LAYOUT.numel)).header
            if header.version > (acked if acked is not None else -1):
                _, state = decode_state(piece, LAYOUT, state)
        assert state is not None
        assert state_digest(LAYOUT, state) == published.digest
    sizes = [len(downlinks.bundle(acked)) for acked in (None, 0, 1, 2)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_snapshot_when_it_is_shorter(ledger: Ledger) -> None:
    published = grow(ledger, 6, "none")
    bundle = Downlinks(ledger, LAYOUT, published).bundle(None)
    envelope, state = decode_state(bundle, LAYOUT, None)
    assert envelope.header.kind is Kind.SNAPSHOT
    assert state_digest(LAYOUT, state) == published.digest


def test_next_version_does_not_depend_on_arrival_and_keeps_the_residual(ledger: Ledger) -> None:
    published = grow(ledger, 2, CODEC)
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", rule="mean")
    admitted = []
    for number, site in enumerate(("east", "north", "west")):
        header = replace(update_header(LAYOUT, published.state), site=site, examples=7 * (number + 1))
        envelope = Envelope(header=header, sections=(), digest=b"")
        admitted.append(Admitted(site, envelope, normal(LAYOUT, 50 + number)))
    one, data = next_version(config, LAYOUT, published, admitted, 3, blobs=ledger.blobs)
    two, again = next_version(config, LAYOUT, published, admitted[::-1], 3, blobs=ledger.blobs)
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
        ("uniform", [1, 1, 1]),
        ("inverse-loss", [1, 1 / 2, 1 / 3]),
        ("given(sites=west:5|east:1|north:3)", [1, 3, 5]),
    ],
)
def test_next_version_weighs(ledger: Ledger, weighting: str, expected: list[float]) -> None:
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", rule="mean", weighting=weighting)
    published = Published(0, state_digest(LAYOUT, BASE), BASE, zeros(LAYOUT))
    admitted = []
    for number, site in enumerate(("east", "north", "west"), 1):
        header = replace(update_header(LAYOUT, BASE), site=site, examples=7 * number, metrics={"train_loss": number})
        admitted.append(Admitted(site, Envelope(header=header, sections=(), digest=b""), normal(LAYOUT, number)))
    one, _ = next_version(config, LAYOUT, published, admitted, 1, blobs=ledger.blobs)
    for name in one.state:
        merged = sum(w * a.tensors[name].astype(np.float64) for w, a in zip(expected, admitted, strict=True))
        sent = one.state[name].astype(np.float64) - BASE[name]
        assert np.allclose(sent + one.residual[name], merged / sum(expected), atol=1e-5)


def test_next_version_says_which_number_is_missing(ledger: Ledger) -> None:
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", weighting="inverse-loss")
    envelope = Envelope(header=update_header(LAYOUT, BASE), sections=(), digest=b"")
    published = Published(0, state_digest(LAYOUT, BASE), BASE, zeros(LAYOUT))
    admitted = [Admitted("north", envelope, normal(LAYOUT, 1))]
    with pytest.raises(ConfigError, match=r"weighting\.losses\[0\]: None: must be a finite number above 0"):
        next_version(config, LAYOUT, published, admitted, 1, blobs=ledger.blobs)


def test_transactions_roll_back(ledger: Ledger) -> None:
    start = seeded_init(LAYOUT, 1)
    published = publish(ledger, 0, start, b"envelope")

    def crash() -> None:
        with ledger.transaction():
            ledger.publish(1, b"x" * 32, b"other", add(start, start), zeros(LAYOUT))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    found = ledger.published(LAYOUT)
    assert found is not None
    assert (found.version, found.digest) == (0, published.digest)
    assert ledger.rounds_done == 0


def test_reopened_and_tampered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "")
    grow(ledger, 2, CODEC)
    assert ledger.collect_garbage() > 0
    ledger.close()
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "ab")
    found = ledger.published(LAYOUT)
    assert found is not None
    assert found.version == 2
    assert len(ledger.envelopes(None)) == 3
    with pytest.raises(MismatchError, match="another adapter or base"):
        ledger.begin(OTHER, "{}", "")
    for path in (tmp_path / "blobs").iterdir():
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StateError, match="none of 2 versions"):
        ledger.published(LAYOUT)
    assert "SHA-256" in ledger.notes[0]


def test_runs_share_a_folder(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, "one"), Ledger(tmp_path, "two")
    for ledger in (one, two):
        ledger.begin(LAYOUT, "{}", "")
        grow(ledger, 1, CODEC)
    one.collect_garbage()
    assert two.published(LAYOUT) is not None


def test_pool_weighs_by_rows() -> None:
    quality = pool(
        [
            {"eval_examples": 10, "eval_correct": 10, "eval_loss_sum": 1.0},
            {"eval_examples": 30, "eval_correct": 0, "eval_loss_sum": 3.0},
            {"seconds_train": 5.0},
        ]
    )
    assert quality is not None
    assert (quality.accuracy, quality.loss, quality.examples) == (0.25, 0.1, 40)
    assert pool([{}]) is None


def test_pool_leaves_out_a_site_that_does_not_report_all() -> None:
    whole = {"eval_examples": 10.0, "eval_correct": 5.0, "eval_loss_sum": 1.0}
    for name in ("eval_correct", "eval_loss_sum"):
        quality = pool([whole, {k: v for k, v in whole.items() if k != name}])
        assert quality is not None
        assert (quality.examples, quality.accuracy) == (10, 0.5)


def test_a_fingerprint_that_is_given_later_counts(tmp_path: Path) -> None:
    """The run was begun without one, and no site has answered yet."""
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "")
    assert ledger.base_fingerprint == ""
    ledger.begin(LAYOUT, "{}", "ab")
    assert ledger.base_fingerprint == "ab"
    ledger.begin(LAYOUT, "{}", "")
    assert ledger.base_fingerprint == "ab"
    with pytest.raises(MismatchError, match="another adapter or base"):
        ledger.begin(LAYOUT, "{}", "cd")


def test_choose() -> None:
    nodes = [5, 3, 9, 1 << 63]
    assert choose(nodes, 0, 1, 1) == choose(nodes, 9, 1, 1) == sorted(nodes)
    assert choose(nodes, 2, 1, 1) == choose(nodes[::-1], 2, 1, 1)
    picked = {n for r in range(40) for n in choose(nodes, 2, 1, r)}
    assert picked == set(nodes)


@pytest.mark.parametrize(
    ("rule", "codec", "told"),
    [
        ("median", "topk(density=0.05)|ternary", "have no majority"),
        ("pcb(ratio=0.2)", "compeft", "one magnitude"),
        ("dare", "lora:topk(density=0.1)|ternary; head:int8", "drops what a codec has left"),
        ("median", "lora-transform", ""),
        ("mean", "topk(density=0.05)|ternary", ""),
        ("lora-ridge", "compeft", ""),
    ],
)
def test_a_rule_that_a_codec_spoils_is_told_before_the_first_round(rule: str, codec: str, told: str) -> None:
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", rule=rule, codec=codec)
    assert (told in " ".join(config.warnings)) if told else not config.warnings
