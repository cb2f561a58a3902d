"""A small run: layout, updates and a ledger that grows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedcompress.adapters import seeded_init
from fedcompress.codecs import CodecSpec
from fedcompress.config.run_config import RunConfig
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.pipeline.updates import encode_update
from fedcompress.types import Layout, state_digest, zeros
from fedcompress.wire import Envelope
from server.ledger.ledger import Ledger
from server.ledger.versions import PublishedState
from server.round.admission import Expected
from server.round.aggregation import AdmittedUpdate, aggregate_round
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
    steps=20,
    batch_size=16,
)


def update(layout: Layout = LAYOUT, codec: str = CODEC, **changes: Any) -> bytes:
    header = update_header(layout, BASE if layout is LAYOUT else normal(layout, 0))
    header = replace(header, **{"adapter_digest": b"a" * 32, "base_fingerprint": b"f" * 32, **changes})
    return encode_update(normal(layout, 1), layout, CodecSpec.parse(codec), header)[0]


def publish(ledger: Ledger, version: int, state: dict[str, Any], envelope: bytes) -> PublishedState:
    published = PublishedState(version, state_digest(LAYOUT, state), state, zeros(LAYOUT))
    with ledger.transaction():
        ledger.publish(version, published.digest, envelope, state, published.residual)
    return published


def grow(ledger: Ledger, versions: int, codec: str) -> PublishedState:
    """Versions 0..n, by ``aggregate_round`` on random updates."""
    start = seeded_init(LAYOUT, 1)
    published = publish(ledger, 0, start, encode_snapshot(start, LAYOUT, run="run", version=0, init_seed=1))
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", downlink_codec=codec)
    for version in range(1, versions + 1):
        envelope = Envelope(header=update_header(LAYOUT, published.state), sections=(), digest=b"")
        admitted = [AdmittedUpdate("north", envelope, normal(LAYOUT, version))]
        published, data = aggregate_round(config, LAYOUT, published, admitted, version, blobs=ledger.blobs)
        with ledger.transaction():
            ledger.publish(published.version, published.digest, data, published.state, published.residual)
    return published
