"""Malformed, lying and oversized bytes: one exception type for each way, bounded memory."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress import errors
from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.byte_io import Writer
from fedcompress.pipeline.states import decode_state, encode_snapshot
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.proto.v1 import update_pb2
from fedcompress.types import Layout, TensorSpec
from fedcompress.wire import Limits, split_bundle, unpack
from tests.support import lora_layout, normal, update_header

LAYOUT = lora_layout()
BASE = normal(LAYOUT, 0)
DATA, _ = encode_update(normal(LAYOUT, 1), LAYOUT, CodecSpec.parse("lora-ternary"), update_header(LAYOUT, BASE))
LIMITS = Limits.for_numel(LAYOUT.numel)


def seal(data: bytes) -> bytes:
    """Give changed bytes a right checksum, to get past it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def rebuilt(change: object = None, body: bytes | None = None) -> bytes:
    """The envelope with its header changed by a function, and other section bytes."""
    _, _, _, head, size = struct.unpack("<4sHHIQ", DATA[:20])
    message = update_pb2.Header.FromString(DATA[20 : 20 + head])
    payload = DATA[20 + head : 20 + head + size] if body is None else body
    if change is not None:
        change(message)
    raw = message.SerializeToString()
    return seal(struct.pack("<4sHHIQ", b"FCU\x01", 1, 0, len(raw), len(payload)) + raw + payload + b"\0" * 32)


def test_the_untouched_envelope_decodes() -> None:
    decode_update(DATA, LAYOUT)
    decode_update(rebuilt(), LAYOUT)


def test_truncated_at_every_length() -> None:
    for size in range(len(DATA)):
        with pytest.raises(errors.TruncatedError):
            unpack(DATA[:size], LIMITS)


def test_extended() -> None:
    with pytest.raises(errors.TrailingBytesError):
        unpack(DATA + b"\0", LIMITS)


def test_every_flipped_bit_of_every_byte_is_seen() -> None:
    for at in range(len(DATA)):
        with pytest.raises(errors.WireError):
            unpack(DATA[:at] + bytes([DATA[at] ^ (1 << at % 8)]) + DATA[at + 1 :], LIMITS)


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        (struct.pack("<4sHHIQ", b"FCX\x01", 1, 0, 0, 0), errors.BadMagicError),
        (struct.pack("<4sHHIQ", b"FCU\x01", 3, 0, 0, 0), errors.VersionError),
        (struct.pack("<4sHHIQ", b"FCU\x01", 1, 1, 0, 0), errors.VersionError),
        (struct.pack("<4sHHIQ", b"FCU\x01", 1, 0, 1 << 17, 0), errors.LimitError),
        (struct.pack("<4sHHIQ", b"FCU\x01", 1, 0, 0, 10**12), errors.LimitError),
    ],
)
def test_prefix(prefix: bytes, error: type[errors.WireError]) -> None:
    with pytest.raises(error):
        unpack(seal(prefix + b"\0" * 64), LIMITS)
    with pytest.raises(error):
        split_bundle(prefix + b"\0" * 64, LIMITS)


def test_a_bomb_allocates_nothing() -> None:
    """A body of 10^12 bytes is promised; less than a megabyte is touched."""
    bomb = struct.pack("<4sHHIQ", b"FCU\x01", 1, 0, 100, 10**12) + b"\0" * 200
    tracemalloc.start()
    with pytest.raises(errors.LimitError):
        unpack(bomb, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_header_is_not_protobuf() -> None:
    data = struct.pack("<4sHHIQ", b"FCU\x01", 1, 0, 8, 0) + b"\xff" * 8 + b"\0" * 32
    with pytest.raises(errors.HeaderError):
        unpack(seal(data), LIMITS)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda h: setattr(h, "kind", 9), errors.HeaderError),
        (lambda h: setattr(h, "kind", 0), errors.HeaderError),
        (lambda h: setattr(h, "base_digest", b"short"), errors.HeaderError),
        (lambda h: setattr(h, "run", "../x"), errors.HeaderError),
        (lambda h: setattr(h, "codec", "exec(x=1)"), errors.HeaderError),
        (lambda h: setattr(h, "codec", "none"), errors.PayloadError),
        (lambda h: setattr(h, "layout_digest", b"x" * 32), errors.MismatchError),
        (lambda h: h.metrics.add(name="nan", value=float("nan")), errors.HeaderError),
        (lambda h: h.metric_codes.append(0), errors.HeaderError),
        (lambda h: (h.metric_codes.append(99), h.metric_values.append(1.0)), errors.HeaderError),
        (lambda h: (h.metric_codes.append(0), h.metric_values.append(float("inf"))), errors.HeaderError),
        (lambda h: (h.metric_codes.extend([0, 0]), h.metric_values.extend([1.0, 1.0])), errors.HeaderError),
        (lambda h: [h.metrics.add(name="twice", value=1.0) for _ in range(2)], errors.HeaderError),
        (lambda h: h.sections.add(size=5), errors.HeaderError),
        (lambda h: h.sections.pop(), errors.HeaderError),
        (lambda h: [h.sections.add(size=0) for _ in range(10_000)], errors.LimitError),
        (lambda h: h.sections.add(size=0), errors.PayloadError),
        (lambda h: setattr(h.sections[0], "size", (1 << 64) - 1), errors.HeaderError),
    ],
)
def test_headers_that_lie(change: object, error: type[errors.FedCompressError]) -> None:
    with pytest.raises(error):
        decode_update(rebuilt(change), LAYOUT)


ONE = Layout((TensorSpec(name="w", shape=(16,)),))


def section(*fields: tuple[str, object]) -> bytes:
    writer = Writer()
    writer.u8(1)
    for method, value in fields:
        getattr(writer, method)(value)
    return writer.getvalue()


BF16_ONE = b"\x80\x3f"


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        ("none", b""),
        ("none", b"\x03" + b"\0" * 64),
        ("none", section(("raw", b"\0" * 63))),
        ("none", section(("raw", b"\0" * 65))),
        ("none", section(("raw", np.full(16, np.nan, "<f4").tobytes()))),
        ("bf16", section(("raw", b"\x80\x7f" * 16))),
        ("topk(density=0.1)|ternary", section(("varint", 17))),
        ("topk(density=0.1)|ternary", section(("raw", b"\x80\x00"))),
        ("topk(density=0.1)|ternary", section(("raw", b"\xff" * 12))),
        ("topk(density=0.1)|ternary", section(("varint", 2), ("u8", 7), ("stream", b""))),
        ("topk(density=0.1)|ternary", section(("varint", 2), ("u8", 0), ("stream", b"\xe0\x00"))),
        ("topk(density=0.1)|ternary", section(("varint", 2), ("u8", 0), ("stream", b"\xe0"))),
        ("topk(density=0.1)|ternary", section(("varint", 2), ("u8", 1), ("stream", b"\xe0\x00\x00"))),
        ("topk(density=0.1)|ternary", section(("varint", 2), ("u8", 0), ("varint", 1 << 40))),
        ("ternary", section(("raw", b"\x80\xff"), ("raw", b"\0\0"))),
        ("ternary", section(("raw", b"\x80\x7f"), ("raw", b"\0\0"))),
        ("ternary", section(("raw", b"\x00\x80"), ("raw", b"\0\0"))),
        ("int(bits=4)", section(("raw", BF16_ONE), ("u8", 0), ("stream", b"\xff" * 8))),
        ("int(bits=4)", section(("raw", BF16_ONE), ("u8", 2), ("stream", b""))),
        ("int(bits=4)", section(("raw", BF16_ONE), ("u8", 1), ("stream", b"\x10" + b"\0" * 14 + b"\0\0\0"))),
        ("int(bits=4)", section(("raw", BF16_ONE), ("u8", 1), ("stream", b"\x0f" + b"\0" * 14 + b"\0\0\0\0"))),
        ("int(bits=4)", section(("raw", b"\x7f\x7f"), ("u8", 0), ("stream", b"\xee" * 8))),
    ],
)
def test_sections_that_lie(spec: str, data: bytes) -> None:
    with pytest.raises(errors.PayloadError):
        decode_sections(CodecSpec.parse(spec), ONE, (data,))


def test_wrong_number_of_sections() -> None:
    with pytest.raises(errors.PayloadError, match="has 1"):
        decode_sections(CodecSpec.parse("none"), ONE, ())


def test_snapshot_with_seed_and_sections() -> None:
    state = normal(LAYOUT, 0)
    whole = unpack(encode_snapshot(state, LAYOUT, run="r", version=0), LIMITS)
    from dataclasses import replace

    from fedcompress.wire import pack

    both = pack(replace(whole.header, init_seed=1), whole.sections)
    with pytest.raises(errors.PayloadError, match="both a seed and sections"):
        decode_state(both, LAYOUT, None)
    with pytest.raises(errors.HeaderError, match="UPDATE"):
        decode_state(DATA, LAYOUT, BASE)


SPECS = ("lora-ternary", "topk(density=0.2)|int(bits=3)", "int4", "bf16", "topk(density=0.5)|none", "ternary")
VALID = {spec: encode_sections(CodecSpec.parse(spec), LAYOUT, normal(LAYOUT, 2)) for spec in SPECS}


@settings(max_examples=4000, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 40),
    grow=st.binary(max_size=8),
)
def test_mutated_sections_decode_or_are_refused(spec: str, edits: list[tuple[int, int]], cut: int, grow: bytes) -> None:
    """Past the checksum: finite tensors of the layout, or PayloadError; nothing else."""
    sections = [bytearray(s) for s in VALID[spec]]
    for at, value in edits:
        target = sections[at % len(sections)]
        if target:
            target[(at // len(sections)) % len(target)] = value
    sections[-1] = sections[-1][: max(0, len(sections[-1]) - cut)] + grow if cut % 3 == 0 else sections[-1]
    try:
        decoded = decode_sections(CodecSpec.parse(spec), LAYOUT, [bytes(s) for s in sections])
    except errors.PayloadError:
        return
    LAYOUT.check(decoded, what="mutated")
