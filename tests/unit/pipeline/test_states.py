"""Published states travel as a seed, a snapshot or a delta."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedcompress.adapters import seeded_init
from fedcompress.codecs import CodecSpec
from fedcompress.errors import MismatchError
from fedcompress.pipeline.states import decode_state, encode_delta, encode_snapshot
from fedcompress.types import state_digest
from tests.support import equal, lora_layout, normal, update_header

LAYOUT = lora_layout()


def test_states_travel_as_seed_snapshot_or_delta() -> None:
    start = seeded_init(LAYOUT, 9)
    seeded = encode_snapshot(start, LAYOUT, run="r", version=0, init_seed=9)
    exact = encode_snapshot(start, LAYOUT, run="r", version=0, init_seed=8)
    assert len(seeded) < 200 < 4 * LAYOUT.numel < len(exact)
    for data in (seeded, exact):
        assert equal(decode_state(data, LAYOUT, None)[1], start)
    change = normal(LAYOUT, 1)
    header = replace(update_header(LAYOUT, start), site="", result_digest=b"0" * 32)
    data, decoded, reached = encode_delta(change, start, LAYOUT, CodecSpec.parse("lora-ternary"), header)
    envelope, state = decode_state(data, LAYOUT, start)
    assert equal(state, reached)
    assert envelope.header.result_digest == state_digest(LAYOUT, reached)
    assert all(np.array_equal(start[n] + decoded[n], state[n]) for n in state)
    for wrong in (None, change):
        with pytest.raises(MismatchError, match="base_digest") as caught:
            decode_state(data, LAYOUT, wrong)
        assert caught.value.code == "base-digest"
