"""Packs and unpacks the bytes of an envelope, as specified in protos/README.md.

    offset  size  field
    0       4     magic "FCU\\x01"
    4       2     wire version, u16 LE, 2 (1 is read too)
    6       2     flags, u16 LE; bit 0: there is a signature
    8       4     header size H, u32 LE
    12      8     body size B, u64 LE
    20      H     header, protobuf fedcompress.v1.Header
    20+H    B     sections, without gaps, sizes in the header
    20+H+B  32    SHA-256 of all bytes before it
    52+H+B  64    Ed25519 signature, if bit 0 of the flags is set

This file is the only one that imports ``update_pb2``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from google.protobuf.message import DecodeError

from fedcompress.errors import HeaderError, LimitError
from fedcompress.proto.v1 import update_pb2
from fedcompress.types import NAME_PATTERN
from fedcompress.wire.frame import (
    DIGEST_SIZE,
    MAGIC,
    MAX_HEADER,
    PREFIX,
    WIRE_VERSION,
    CheckedFrame,
    Limits,
    check_frame,
)

MAX_SECTIONS = 8192  # in one envelope
MAX_METRICS = 64  # in one header
MAX_CODEC_SPEC = 1024  # characters
# From wire version 2 on, these metrics travel as their number here and a float32. The tuple may only grow at its end.
KNOWN_METRICS = (
    "eval_correct",
    "eval_loss_sum",
    "eval_examples",
    "train_loss",
    "seconds_load",
    "seconds_evaluate",
    "seconds_train",
    "alone_correct",
)
MAX_FLOAT = 3.4e38  # metrics of this size or more do not fit float32, and travel by name as float64
METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")  # the name of a metric


class Kind(IntEnum):
    """The kind says what an envelope carries; the numbers are those of the protobuf enum."""

    UPDATE = 1  # what a site has learnt: its values minus the base that it began with
    DELTA = 2  # the step from one published state to the next
    SNAPSHOT = 3  # a whole published state, or the seed that it is made from
    REPORT = 4  # metrics of an evaluation; no tensors
    FILE = 5  # an adapter or checkpoint on disk, with a manifest as its first section
    CONSTANTS = 6  # tensors that all sites must have and nobody trains


# Digests that a header of each kind must have; others may be left empty.
_NEEDED_DIGESTS = {
    Kind.UPDATE: ("base_digest", "layout_digest"),
    Kind.DELTA: ("base_digest", "result_digest", "layout_digest"),
    Kind.SNAPSHOT: ("result_digest", "layout_digest"),
    Kind.REPORT: ("base_digest", "layout_digest"),
    Kind.FILE: ("result_digest", "layout_digest"),
    Kind.CONSTANTS: ("result_digest", "layout_digest"),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header says what an envelope is about; update.proto explains its fields. Digests have 32 bytes."""

    kind: Kind
    run: str
    round: int
    version: int
    layout_digest: bytes
    codec: str
    site: str = ""
    base_digest: bytes = b""
    result_digest: bytes = b""
    base_fingerprint: bytes = b""
    adapter_digest: bytes = b""
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    init_seed: int | None = None

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.run) and (self.run or self.kind is not Kind.FILE):
            raise HeaderError(f"header.run: {self.run[:80]!r}: must match {NAME_PATTERN.pattern}")
        if self.site and not NAME_PATTERN.fullmatch(self.site):
            raise HeaderError(f"header.site: {self.site[:80]!r}: must match {NAME_PATTERN.pattern}")
        if len(self.codec) > MAX_CODEC_SPEC:
            raise HeaderError(f"header.codec: {len(self.codec)} characters: at most {MAX_CODEC_SPEC}")
        if not (0 <= self.round < 1 << 32 and 0 <= self.version < 1 << 32):
            raise HeaderError(f"header.round, version: {self.round}, {self.version}: must be below 2^32")
        if not (0 <= self.examples < 1 << 64 and 0 <= (self.init_seed or 0) < 1 << 64):
            raise HeaderError(f"header.examples, init_seed: {self.examples}, {self.init_seed}: must be below 2^64")
        self._check_digests()
        if len(self.metrics) > MAX_METRICS:
            raise HeaderError(f"header.metrics: {len(self.metrics)} entries: at most {MAX_METRICS}")
        for name, value in self.metrics.items():
            if not METRIC.fullmatch(name) or not math.isfinite(value):
                raise HeaderError(f"header.metrics: {name[:80]!r}={value}: must match {METRIC.pattern}, finite")

    def _check_digests(self) -> None:
        needed = _NEEDED_DIGESTS[self.kind]
        for name in ("base_digest", "result_digest", "layout_digest", "base_fingerprint", "adapter_digest"):
            size = len(getattr(self, name))
            if size != DIGEST_SIZE and (size or name in needed):
                raise HeaderError(f"header.{name}: {size} bytes: must be {DIGEST_SIZE} for {self.kind.name}")


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """An envelope that was checked has a header, sections and its SHA-256; nobody has verified its signature."""

    header: Header
    sections: tuple[bytes, ...]
    digest: bytes
    signature: bytes = b""


def pack(header: Header, sections: tuple[bytes, ...]) -> bytes:
    """Serialize an envelope without a signature; equal input gives equal bytes.

    Raises:
        LimitError: there are too many sections, or the header is too large.
    """
    if len(sections) > MAX_SECTIONS:
        raise LimitError(f"sections: {len(sections)}: at most {MAX_SECTIONS}")
    message = _build_message(header, sections)
    header_bytes = message.SerializeToString(deterministic=True)
    if len(header_bytes) > MAX_HEADER:
        raise LimitError(f"header: {len(header_bytes)} bytes: at most {MAX_HEADER}")
    body_size = sum(map(len, sections))
    prefix = PREFIX.pack(MAGIC, WIRE_VERSION, 0, len(header_bytes), body_size)
    sha = hashlib.sha256()
    for piece in (prefix, header_bytes, *sections):
        sha.update(piece)
    return b"".join((prefix, header_bytes, *sections, sha.digest()))


def _build_message(header: Header, sections: tuple[bytes, ...]) -> update_pb2.Header:
    """Build the protobuf message; metrics that float32 holds travel by number, the others by name."""
    numbered = [n for n in KNOWN_METRICS if abs(header.metrics.get(n, math.inf)) < MAX_FLOAT]
    named = sorted(set(header.metrics) - set(numbered))
    return update_pb2.Header(
        kind=int(header.kind),  # type: ignore[arg-type]
        run=header.run,
        site=header.site,
        round=header.round,
        version=header.version,
        base_digest=header.base_digest,
        result_digest=header.result_digest,
        layout_digest=header.layout_digest,
        base_fingerprint=header.base_fingerprint,
        adapter_digest=header.adapter_digest,
        codec=header.codec,
        examples=header.examples,
        metrics=[update_pb2.Metric(name=n, value=header.metrics[n]) for n in named],
        metric_codes=[KNOWN_METRICS.index(n) for n in numbered],
        metric_values=[header.metrics[n] for n in numbered],
        sections=[update_pb2.Section(size=len(s)) for s in sections],
        init_seed=header.init_seed,
    )


def unpack(data: bytes | CheckedFrame, limits: Limits) -> Envelope:
    """Parse and check one envelope.

    Bytes that ``check_frame`` has checked are not hashed again.

    Raises:
        WireError: the envelope is malformed; there is one subclass for each way.
    """
    checked = check_frame(data, limits)
    data, body_end = checked.data, checked.frame.checked
    header_end = PREFIX.size + checked.frame.header
    message = update_pb2.Header()
    try:
        message.ParseFromString(data[PREFIX.size : header_end])
    except DecodeError as error:
        raise HeaderError(f"header: not a protobuf message: {error}") from error
    header = _parse_header(message)
    sizes = [s.size for s in message.sections]
    if len(sizes) > MAX_SECTIONS:
        raise LimitError(f"sections: {len(sizes)}: at most {MAX_SECTIONS}")
    if sum(sizes) != body_end - header_end:
        raise HeaderError(f"sections: sizes add up to {sum(sizes)}: body has {body_end - header_end}")
    sections = []
    start = header_end
    for size in sizes:
        sections.append(data[start : start + size])
        start += size
    seal = checked.seal
    return Envelope(header=header, sections=tuple(sections), digest=seal.digest, signature=seal.signature)


def _parse_header(message: update_pb2.Header) -> Header:
    try:
        kind = Kind(message.kind)
    except ValueError as error:
        raise HeaderError(f"header.kind: {message.kind}: one of {[int(k) for k in Kind]}") from error
    return Header(
        kind=kind,
        run=message.run,
        site=message.site,
        round=message.round,
        version=message.version,
        base_digest=message.base_digest,
        result_digest=message.result_digest,
        layout_digest=message.layout_digest,
        base_fingerprint=message.base_fingerprint,
        adapter_digest=message.adapter_digest,
        codec=message.codec,
        examples=message.examples,
        metrics=_parse_metrics(message),
        init_seed=message.init_seed if message.HasField("init_seed") else None,
    )


def _parse_metrics(message: update_pb2.Header) -> dict[str, float]:
    if len(message.metric_codes) != len(message.metric_values):
        count = len(message.metric_values)
        raise HeaderError(f"header.metric_codes: {len(message.metric_codes)}: as many as metric_values, {count}")
    if any(code >= len(KNOWN_METRICS) for code in message.metric_codes):
        raise HeaderError(f"header.metric_codes: {max(message.metric_codes)}: must be below {len(KNOWN_METRICS)}")
    names = [KNOWN_METRICS[code] for code in message.metric_codes] + [m.name for m in message.metrics]
    values = [*message.metric_values, *(m.value for m in message.metrics)]
    if len(set(names)) != len(names):
        raise HeaderError("header.metrics: a name occurs twice")
    return dict(zip(names, values, strict=True))
