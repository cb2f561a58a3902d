"""The frame of an envelope: prefix, sizes, SHA-256 and signature. Nothing in the envelope is decoded here."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from fedcompress.errors import (
    BadMagicError,
    ChecksumError,
    ConfigError,
    LimitError,
    TrailingBytesError,
    TruncatedError,
    VersionError,
)

MAGIC = b"FCU\x01"
WIRE_VERSION = 2
OLDEST_VERSION = 1
SIGNED = 1  # bit 0 of the flags
PREFIX = struct.Struct("<4sHHIQ")
DIGEST_SIZE = 32
SIGNATURE_SIZE = 64
MAX_HEADER = 64 * 1024
CONTEXT = b"fedcompress-envelope-v1\0"  # what is signed begins so: it cannot be taken for something else
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a receiver allows, checked before anything is allocated."""

    max_body: int  # bytes

    def __post_init__(self) -> None:
        if self.max_body < 0:
            raise ConfigError("limits.max_body", self.max_body, "must be >= 0 bytes")

    @classmethod
    def for_numel(cls, numel: int) -> Limits:
        """Enough for any of our codecs on ``numel`` parameters: 8 bytes each + 1 MiB."""
        return cls(max_body=8 * numel + (1 << 20))


@dataclass(frozen=True)
class Seal:
    """How an envelope ends: its digest, and a signature of 64 bytes, or none."""

    digest: bytes
    signature: bytes

    @property
    def statement(self) -> bytes:
        """The bytes that are signed: run, site, round and base are in the header, which the digest covers."""
        return CONTEXT + self.digest


@dataclass(frozen=True)
class Frame:
    """Sizes that the prefix promises, in bytes."""

    header: int
    signed: bool
    checked: int  # what the SHA-256 covers

    @property
    def total(self) -> int:
        """The whole envelope."""
        return self.checked + DIGEST_SIZE + (SIGNATURE_SIZE if self.signed else 0)


def read_prefix(data: bytes | memoryview, limits: Limits) -> Frame:
    """Check the fixed prefix.

    Raises:
        WireError: it is malformed or beyond the limits.
    """
    if len(data) < PREFIX.size:
        raise TruncatedError(f"envelope: {len(data)} bytes: at least {PREFIX.size + DIGEST_SIZE}")
    magic, version, flags, head_size, body_size = PREFIX.unpack(data[: PREFIX.size])
    if magic != MAGIC:
        raise BadMagicError(f"envelope.magic: {bytes(magic).hex()}: must be {MAGIC.hex()}")
    if not OLDEST_VERSION <= version <= WIRE_VERSION:
        raise VersionError(f"envelope.version: {version}: this library reads {OLDEST_VERSION} to {WIRE_VERSION}")
    known = SIGNED if version > OLDEST_VERSION else 0
    if flags & ~known:
        raise VersionError(f"envelope.flags: {flags:#x}: must be within {known:#x} in version {version}")
    if head_size > MAX_HEADER:
        raise LimitError(f"envelope.header_size: {head_size}: at most {MAX_HEADER}")
    if body_size > limits.max_body:
        raise LimitError(f"envelope.body_size: {body_size}: at most {limits.max_body}")
    return Frame(head_size, bool(flags & SIGNED), PREFIX.size + head_size + body_size)


def size_of(prefix: bytes, limits: Limits) -> int:
    """Bytes of the whole envelope that begins with these 20 bytes or more.

    Raises:
        WireError: the prefix is malformed or beyond the limits.
    """
    return read_prefix(prefix, limits).total


def check_frame(data: bytes, limits: Limits) -> tuple[Frame, Seal]:
    """Check prefix, sizes and SHA-256 of one envelope; the signature is only cut out.

    Raises:
        WireError: one subclass for each way of being malformed.
    """
    frame = read_prefix(data, limits)
    if len(data) < frame.total:
        raise TruncatedError(f"envelope: {len(data)} bytes: {frame.total} were promised")
    if len(data) > frame.total:
        raise TrailingBytesError(f"envelope: {len(data)} bytes: {frame.total} were promised")
    end = frame.checked + DIGEST_SIZE
    digest = data[frame.checked : end]
    if hashlib.sha256(memoryview(data)[: frame.checked]).digest() != digest:
        raise ChecksumError("envelope: SHA-256 does not match: the bytes were changed")
    return frame, Seal(digest, data[end:])


def seal_of(data: bytes, limits: Limits) -> Seal:
    """Digest and signature of one envelope, before anything in it is decoded.

    Raises:
        WireError: one subclass for each way of being malformed.
    """
    return check_frame(data, limits)[1]


def digest_of(data: bytes) -> bytes:
    """The digest that names a packed envelope: the SHA-256 that ends it, before its signature."""
    signed = len(data) >= PREFIX.size and PREFIX.unpack(data[: PREFIX.size])[2] & SIGNED
    end = len(data) - (SIGNATURE_SIZE if signed else 0)
    return data[end - DIGEST_SIZE : end]


def sign_envelope(data: bytes, sign: Sign) -> bytes:
    """The same envelope with a signature; one that it had is replaced.

    The digest says that there is a signature, but not which: signing with another key keeps it.

    Args:
        data: a packed envelope.
        sign: the Ed25519 signature, 64 bytes, of the bytes that it is given.

    Raises:
        WireError: it is malformed.
    """
    frame, _ = check_frame(data, Limits(max_body=len(data)))
    magic, _, _, head_size, body_size = PREFIX.unpack(data[: PREFIX.size])
    whole = PREFIX.pack(magic, WIRE_VERSION, SIGNED, head_size, body_size) + data[PREFIX.size : frame.checked]
    seal = Seal(hashlib.sha256(whole).digest(), b"")
    return whole + seal.digest + sign(seal.statement)


def split_bundle(data: bytes, limits: Limits, *, max_envelopes: int = 100_000) -> list[bytes]:
    """Cut concatenated envelopes apart, without decoding them.

    Raises:
        WireError: a prefix is malformed, or the last envelope is incomplete.
    """
    pieces: list[bytes] = []
    at, view = 0, memoryview(data)
    while at < len(data):
        if len(pieces) == max_envelopes:
            raise LimitError(f"bundle: more than {max_envelopes} envelopes")
        total = read_prefix(view[at:], limits).total
        if at + total > len(data):
            raise TruncatedError(f"bundle: {len(data) - at} bytes left: {total} were promised")
        pieces.append(data[at : at + total])
        at += total
    return pieces
