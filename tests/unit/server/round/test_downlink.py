"""Downlinks lead every site to the newest version."""

from __future__ import annotations

from fedcompress.pipeline.states import decode_state
from fedcompress.types import state_digest
from fedcompress.wire import Kind, Limits, split_bundle, unpack
from server.ledger.ledger import Ledger
from server.round.downlink import DownlinkBuilder
from tests.unit.server.samples import CODEC, LAYOUT, grow


def test_downlinks_lead_everybody_to_the_newest_version(ledger: Ledger) -> None:
    published = grow(ledger, 3, CODEC)
    downlinks = DownlinkBuilder(ledger, LAYOUT, published)
    states, state = {}, None
    for piece in ledger.envelopes(None):
        envelope, state = decode_state(piece, LAYOUT, state)
        states[envelope.header.version] = state
    for acked in (None, 0, 1, 2, 3):
        state = states.get(acked) if acked is not None else None
        for piece in split_bundle(downlinks.build(acked), Limits.for_numel(LAYOUT.numel)):
            header = unpack(piece, Limits.for_numel(LAYOUT.numel)).header
            if header.version > (acked if acked is not None else -1):
                _, state = decode_state(piece, LAYOUT, state)
        assert state is not None
        assert state_digest(LAYOUT, state) == published.digest
    sizes = [len(downlinks.build(acked)) for acked in (None, 0, 1, 2)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_snapshot_when_it_is_shorter(ledger: Ledger) -> None:
    published = grow(ledger, 6, "none")
    bundle = DownlinkBuilder(ledger, LAYOUT, published).build(None)
    envelope, state = decode_state(bundle, LAYOUT, None)
    assert envelope.header.kind is Kind.SNAPSHOT
    assert state_digest(LAYOUT, state) == published.digest
