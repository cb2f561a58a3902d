"""Bytes of the envelope; what a receiver refuses is in tests/hostile."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest

from fedcompress.errors import HeaderError, LimitError, TruncatedError
from fedcompress.wire import Header, Kind, Limits, digest_of, pack, size_of, split_bundle, unpack
from fedcompress.wire.envelope import KNOWN_METRICS
from tests.support import lora_layout, normal, update_header

LAYOUT = lora_layout()
HEADER = update_header(LAYOUT, normal(LAYOUT, 0), metrics={"eval_correct": 3.0, "a": 0.5})


def test_round_trip_and_layout_of_the_bytes() -> None:
    sections = (b"abc", b"", b"\x00" * 10)
    data = pack(HEADER, sections)
    magic, version, flags, head, body = struct.unpack("<4sHHIQ", data[:20])
    assert (magic, version, flags, body) == (b"FCU\x01", 2, 0, 13)
    assert data[20 + head : -32] == b"".join(sections)
    assert data[-32:] == hashlib.sha256(data[:-32]).digest() == digest_of(data)
    envelope = unpack(data, Limits(max_body=13))
    assert (envelope.header, envelope.sections, envelope.digest) == (HEADER, sections, data[-32:])


def test_metrics_with_a_number_take_nine_bytes_or_less() -> None:
    """And travel as float32; what float32 does not hold travels by name."""
    metrics = {name: 0.1 * i for i, name in enumerate(KNOWN_METRICS)} | {"train_loss": 1e39, "other": 0.1}
    data = pack(replace(HEADER, metrics=metrics), ())
    plain = pack(replace(HEADER, metrics={}), ())
    got = unpack(data, Limits(max_body=0)).header.metrics
    assert got == {n: v if n in ("train_loss", "other") else float(np.float32(v)) for n, v in metrics.items()}
    named = sum(len(n) + 13 for n in ("train_loss", "other"))
    assert len(data) - len(plain) <= 9 * len(KNOWN_METRICS) + named


def test_version_1_is_still_read() -> None:
    data = bytearray(pack(replace(HEADER, metrics={"a": 0.5}), (b"x",)))
    data[4] = 1
    old = bytes(data[:-32]) + hashlib.sha256(data[:-32]).digest()
    assert unpack(old, Limits(max_body=1)).header.metrics == {"a": 0.5}


def test_equal_input_gives_equal_bytes() -> None:
    other = update_header(LAYOUT, normal(LAYOUT, 0), metrics={"a": 0.5, "eval_correct": 3.0})
    assert pack(HEADER, (b"x",)) == pack(other, (b"x",))


def test_a_bundle_is_a_concatenation() -> None:
    pieces = [pack(HEADER, (bytes([i]) * i,)) for i in range(5)]
    assert split_bundle(b"".join(pieces), Limits(max_body=10)) == pieces
    assert split_bundle(b"", Limits(max_body=10)) == []
    with pytest.raises(LimitError, match="more than 4 envelopes"):
        split_bundle(b"".join(pieces), Limits(max_body=10), max_envelopes=4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "a b"}, "header.run"),
        ({"run": ""}, "header.run"),
        ({"run": "x" * 65}, "header.run"),
        ({"site": "../up"}, "header.site"),
        ({"codec": "x" * 1025}, "header.codec"),
        ({"round": -1}, "below 2"),
        ({"version": 1 << 32}, r"below 2\^32"),
        ({"examples": -1}, "header.examples"),
        ({"examples": 1 << 64}, "header.examples"),
        ({"init_seed": -1}, "init_seed"),
        ({"init_seed": 1 << 64}, "init_seed"),
        ({"base_digest": b""}, "header.base_digest"),
        ({"layout_digest": b"x" * 31}, "header.layout_digest"),
        ({"metrics": {"Bad": 1.0}}, "header.metrics"),
        ({"metrics": {"nan": float("nan")}}, "finite"),
        ({"metrics": {f"m{i}": 0.0 for i in range(65)}}, "at most 64"),
    ],
)
def test_bad_headers_are_refused_by_field(changes: dict[str, object], words: str) -> None:
    with pytest.raises(HeaderError, match=words):
        update_header(LAYOUT, normal(LAYOUT, 0), **changes)


@pytest.mark.parametrize("kind", list(Kind))
def test_kinds_need_their_digests(kind: Kind) -> None:
    needed = {
        Kind.SNAPSHOT: {"result_digest"},
        Kind.DELTA: {"base_digest", "result_digest"},
        Kind.FILE: {"result_digest"},
        Kind.CONSTANTS: {"result_digest"},
    }.get(kind, {"base_digest"})
    digests = {name: b"d" * 32 for name in ("base_digest", "result_digest")}
    fields = {"kind": kind, "run": "r", "round": 0, "version": 0, "codec": "none", "layout_digest": b"l" * 32}
    Header(**fields, **digests)
    for name in needed:
        with pytest.raises(HeaderError, match=name):
            Header(**fields, **{**digests, name: b""})


def test_only_a_file_may_be_without_a_run() -> None:
    fields = {
        "run": "",
        "round": 0,
        "version": 0,
        "codec": "none",
        "layout_digest": b"l" * 32,
        "result_digest": b"r" * 32,
    }
    header = Header(kind=Kind.FILE, **fields)
    data = pack(header, (b"abc",))
    assert unpack(data, Limits(max_body=3)).header == header
    assert size_of(data[:20], Limits(max_body=3)) == len(data)
    with pytest.raises(LimitError, match="body_size"):
        size_of(data[:20], Limits(max_body=2))
    with pytest.raises(TruncatedError):
        size_of(data[:19], Limits(max_body=3))
    with pytest.raises(HeaderError, match=r"header\.run"):
        Header(kind=Kind.FILE, **{**fields, "run": "a b"})


def test_too_many_sections() -> None:
    with pytest.raises(LimitError, match="at most 8192"):
        pack(HEADER, (b"",) * 8193)


def test_the_ends_of_the_integers_travel() -> None:
    header = update_header(
        LAYOUT,
        normal(LAYOUT, 0),
        round=(1 << 32) - 1,
        version=(1 << 32) - 1,
        examples=(1 << 64) - 1,
        init_seed=(1 << 64) - 1,
    )
    assert unpack(pack(header, ()), Limits(max_body=0)).header == header
    zero = update_header(LAYOUT, normal(LAYOUT, 0), init_seed=0)
    assert unpack(pack(zero, ()), Limits(max_body=0)).header.init_seed == 0
