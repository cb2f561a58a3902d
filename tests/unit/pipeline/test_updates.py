"""Kinds, codecs and values that do not belong together are refused, by the right error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedcompress.codecs import CODECS, CodecSpec, encode_sections, sample_spec
from fedcompress.errors import HeaderError, NonFiniteError, PayloadError
from fedcompress.pipeline.states import decode_state, encode_delta, encode_snapshot
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.types import Layout, Tensors, TensorSpec, zeros
from fedcompress.wire import Header, Kind, pack
from tests.support import equal, lora_layout, normal, update_header

LAYOUT = lora_layout()
BASE = normal(LAYOUT, 0)
NONE = CodecSpec.parse("none")


def delta_header(layout: Layout, base: Tensors) -> Header:
    return replace(update_header(layout, base), kind=Kind.DELTA, site="", result_digest=b"r" * 32)


@pytest.mark.parametrize("name", CODECS)
def test_the_sender_knows_what_the_receiver_decodes(name: str) -> None:
    spec = sample_spec(name)
    data, decoded = encode_update(normal(LAYOUT, 1), LAYOUT, CodecSpec.parse(spec), update_header(LAYOUT, BASE))
    envelope, again = decode_update(data, LAYOUT)
    assert equal(again, decoded)
    assert envelope.header.codec == str(CodecSpec.parse(spec))


def test_only_updates_and_deltas_are_updates() -> None:
    snapshot = encode_snapshot(BASE, LAYOUT, run="run", version=0)
    report = pack(update_header(LAYOUT, BASE, kind=Kind.REPORT), encode_sections(NONE, LAYOUT, BASE))
    for data, name in ((snapshot, "SNAPSHOT"), (report, "REPORT")):
        with pytest.raises(HeaderError, match=f"header.kind: {name}"):
            decode_update(data, LAYOUT)
    delta, decoded, _ = encode_delta(normal(LAYOUT, 1), BASE, LAYOUT, NONE, delta_header(LAYOUT, BASE))
    assert equal(decode_update(delta, LAYOUT)[1], decoded)


def test_a_codec_that_does_not_fit_the_layout_is_malformed() -> None:
    """Not a ConfigError: nobody here has set anything wrong."""
    data = pack(update_header(LAYOUT, BASE, codec="head: none"), (b"\x01" + b"\0" * 300,))
    with pytest.raises(PayloadError, match="does not fit the layout"):
        decode_update(data, LAYOUT)


ONE = Layout((TensorSpec(name="w", shape=(2,)),))
HUGE = {"w": np.full(2, 3e38, np.float32)}


def test_a_delta_beyond_float32_is_not_sent() -> None:
    with pytest.raises(NonFiniteError, match="state reached: w"):
        encode_delta(HUGE, HUGE, ONE, NONE, delta_header(ONE, HUGE))


def test_a_delta_beyond_float32_is_not_taken() -> None:
    header = replace(delta_header(ONE, HUGE), codec="none")
    with pytest.raises(PayloadError, match="overflows the state"):
        decode_state(pack(header, encode_sections(NONE, ONE, HUGE)), ONE, HUGE)


def test_a_layout_without_tensors() -> None:
    empty = Layout(())
    for spec in ("lora-ternary", "int8", "none"):
        data, decoded = encode_update({}, empty, CodecSpec.parse(spec), update_header(empty, {}))
        assert decode_update(data, empty)[1] == decoded == {}
    assert decode_state(encode_snapshot({}, empty, run="r", version=0), empty, None)[1] == {}


def test_a_seed_is_only_sent_if_it_rebuilds_the_state() -> None:
    assert len(encode_snapshot(zeros(ONE), ONE, run="r", version=0, init_seed=(1 << 64) - 1)) < 200
    assert equal(decode_state(encode_snapshot(HUGE, ONE, run="r", version=0, init_seed=1), ONE, None)[1], HUGE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_tensors_give_the_bytes_of_arrays(dtype: str) -> None:
    import torch

    tensors = {n: torch.from_numpy(v).to(getattr(torch, dtype)).requires_grad_() for n, v in normal(LAYOUT, 1).items()}
    arrays = {n: v.detach().float().numpy() for n, v in tensors.items()}
    header, codec = update_header(LAYOUT, BASE), CodecSpec.parse("topk(density=0.1)|ternary")
    assert encode_update(tensors, LAYOUT, codec, header)[0] == encode_update(arrays, LAYOUT, codec, header)[0]
