"""Changed bytes with a right checksum: whole envelopes of every kind, byte by byte."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fedcompress import errors
from fedcompress.adapters import seeded_init
from fedcompress.codecs import CodecSpec, decode_sections
from fedcompress.codecs.byte_io import Writer
from fedcompress.pipeline.states import decode_state, encode_delta, encode_snapshot
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.proto.v1 import update_pb2
from fedcompress.types import Layout, Tensors, TensorSpec
from fedcompress.wire import Envelope, Kind
from tests.support import equal, lora_layout, normal, update_header

LAYOUT = lora_layout(modules=1, rank=2, width=10)
BASE = normal(LAYOUT, 0)
START = seeded_init(LAYOUT, 5)
CODEC = CodecSpec.parse("lora: topk(density=0.2)|ternary; head: topk(density=0.5)|int(bits=3)")
HEADER = update_header(LAYOUT, BASE, metrics={"a": 1.0})
DELTA_HEADER = update_header(LAYOUT, BASE, kind=Kind.DELTA, site="", result_digest=b"r" * 32)
Decode = Callable[[bytes], tuple[Envelope, Tensors]]


def seal(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def of_state(data: bytes) -> tuple[Envelope, Tensors]:
    return decode_state(data, LAYOUT, BASE)


def of_update(data: bytes) -> tuple[Envelope, Tensors]:
    return decode_update(data, LAYOUT)


CASES: dict[str, tuple[bytes, Decode]] = {
    "update": (encode_update(normal(LAYOUT, 1), LAYOUT, CODEC, HEADER)[0], of_update),
    "delta": (encode_delta(normal(LAYOUT, 1), BASE, LAYOUT, CODEC, DELTA_HEADER)[0], of_state),
    "seed": (encode_snapshot(START, LAYOUT, run="r", version=0, init_seed=5), of_state),
}


def mutants(data: bytes) -> Iterator[bytes]:
    """Every bit of every byte, every truncation, some extensions; all sealed."""
    raw = data[:-32]
    for at in range(len(raw)):
        for bit in range(8):
            yield seal(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        yield seal(raw[:at])
    for extra in (b"\0", b"\xff" * 4, raw):
        yield seal(raw + extra)


@pytest.mark.parametrize("name", CASES)
def test_every_changed_bit_is_refused_or_decodes_to_finite_tensors(name: str) -> None:
    data, decode = CASES[name]
    _, honest = decode(data)
    refused = decoded = 0
    for mutant in mutants(data):
        try:
            _, tensors = decode(mutant)
        except (errors.WireError, errors.MismatchError):
            refused += 1
            continue
        decoded += 1
        LAYOUT.check(tensors, what="mutant")
        if decode is of_state:  # the digest of the result covers the values
            assert all((tensors[n] == honest[n]).all() for n in honest)
    assert refused > decoded


@pytest.mark.parametrize("name", CASES)
def test_truncated_and_extended_bodies_are_told_apart(name: str) -> None:
    data, decode = CASES[name]
    raw = data[:-32]
    for size in range(20, len(raw)):
        with pytest.raises(errors.TruncatedError):
            decode(seal(raw[:size]))
    with pytest.raises(errors.TrailingBytesError):
        decode(seal(raw + b"\0"))


def with_header(change: Callable[[update_pb2.Header], object]) -> bytes:
    data = CASES["update"][0]
    size = int.from_bytes(data[8:12], "little")
    message = update_pb2.Header.FromString(data[20 : 20 + size])
    change(message)
    head = message.SerializeToString()
    return seal(data[:8] + len(head).to_bytes(4, "little") + data[12:20] + head + data[20 + size : -32])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda h: setattr(h, "kind", 3), errors.HeaderError),
        (lambda h: setattr(h, "kind", -1), errors.HeaderError),
        (lambda h: setattr(h, "codec", "lora: none; head: none "), errors.PayloadError),
        (lambda h: setattr(h, "codec", "lora: none; other: none"), errors.PayloadError),
        (lambda h: setattr(h, "codec", "head: " * 200), errors.HeaderError),
        (lambda h: setattr(h, "codec", "topk(density=nan)|none; head: none"), errors.HeaderError),
        (lambda h: setattr(h, "codec", "int(bits=" + "9" * 900 + "); head: none"), errors.HeaderError),
        (lambda h: setattr(h, "site", "a\n"), errors.HeaderError),
        (lambda h: setattr(h, "site", "\u00e4"), errors.HeaderError),
        (lambda h: h.metrics.add(name="inf", value=float("-inf")), errors.HeaderError),
        (lambda h: h.metrics.add(name="a", value=1.0), errors.HeaderError),
        (lambda h: h.metrics.add(name="", value=1.0), errors.HeaderError),
        (lambda h: [h.metrics.add(name=f"m{i}", value=0) for i in range(64)], errors.HeaderError),
        (lambda h: h.ClearField("layout_digest"), errors.HeaderError),
        (lambda h: setattr(h, "adapter_digest", b"x" * 33), errors.HeaderError),
        (lambda h: h.sections.reverse(), errors.PayloadError),
        (lambda h: h.sections.add(size=(1 << 64) - 1), errors.HeaderError),
    ],
)
def test_headers_that_lie(change: Callable[[update_pb2.Header], object], error: type[errors.FedCompressError]) -> None:
    with pytest.raises(error):
        of_update(with_header(change))


def test_text_that_is_not_utf8() -> None:
    data = CASES["update"][0]
    with pytest.raises(errors.HeaderError, match="protobuf"):
        of_update(seal(data[:-32].replace(b"\x12\x03run", b"\x12\x03\xff\xfe\xfd")))


def test_fields_of_a_later_version_are_skipped() -> None:
    """Protobuf field 100, unknown here: a bytes field with two bytes."""
    data, decode = CASES["update"]
    size = int.from_bytes(data[8:12], "little")
    extra = b"\xa2\x06\x02hi"
    head = (size + len(extra)).to_bytes(4, "little")
    longer = seal(data[:8] + head + data[12 : 20 + size] + extra + data[20 + size : -32])
    assert equal(decode(longer)[1], decode(data)[1])


BIG = Layout((TensorSpec(name="w", shape=(1 << 16,)),))


def claims(*fields: tuple[str, object]) -> bytes:
    writer = Writer()
    writer.u8(1)
    for method, value in fields:
        getattr(writer, method)(value)
    return writer.getvalue()


@pytest.mark.parametrize(
    ("spec", "section"),
    [
        ("topk(density=0.1)|none", claims(("varint", (1 << 63) - 1))),
        ("topk(density=0.1)|none", claims(("varint", 9), ("u8", 0), ("varint", (1 << 62)))),
        ("topk(density=0.1)|none", claims(("varint", 9), ("u8", 1), ("varint", (1 << 62)))),
        ("topk(density=0.1)|none", claims(("varint", 1 << 16), ("u8", 0), ("stream", b""), ("raw", b"\0" * 9))),
        ("ternary", claims(("raw", b"\x80\x3f"))),
        ("int(bits=8,block=1)", claims(("raw", b"\x80\x3f"))),
        ("int", claims(("raw", b"\x80\x3f"), ("u8", 1), ("stream", b"\xff" * 8 + b"\x7f" + b"\0" * 254))),
        ("none", claims()),
    ],
)
def test_claims_allocate_no_more_than_the_receivers_own_layout(spec: str, section: bytes) -> None:
    codec = CodecSpec.parse(spec)
    tracemalloc.start()
    try:
        with pytest.raises(errors.PayloadError):
            decode_sections(codec, BIG, (section,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 * BIG.numel


@pytest.mark.parametrize("scale", [0x8000, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
@pytest.mark.parametrize("spec", ["ternary", "int(bits=4)"])
def test_scales_that_are_no_scales(scale: int, spec: str) -> None:
    layout = Layout((TensorSpec(name="w", shape=(8,)),))
    raw = scale.to_bytes(2, "little")
    rest = [("raw", b"\0")] if spec == "ternary" else [("u8", 0), ("stream", b"\x77" * 4)]
    with pytest.raises(errors.PayloadError, match="scale"):
        decode_sections(CodecSpec.parse(spec), layout, (claims(("raw", raw), *rest),))


@pytest.mark.parametrize("word", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", ["none", "topk(density=1.0)|none"])
def test_values_that_are_not_finite(word: float, spec: str) -> None:
    layout = Layout((TensorSpec(name="w", shape=(2,)),))
    mask = [("varint", 2), ("u8", 0), ("stream", b"")] if "topk" in spec else []
    section = claims(*mask, ("raw", np.array([1, word], "<f4").tobytes()))
    with pytest.raises(errors.PayloadError, match="w: contains NaN or infinity"):
        decode_sections(CodecSpec.parse(spec), layout, (section,))
