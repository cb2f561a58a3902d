"""The frame of an envelope holds its prefix, sizes, SHA-256 and signature; nothing inside is decoded here."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

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
WIRE_VERSION = 2  # the version that is written
OLDEST_VERSION = 1  # the oldest version that is read; it has no signatures
SIGNED = 1  # bit 0 of the flags: a signature follows the SHA-256
PREFIX = struct.Struct("<4sHHIQ")  # magic, version, flags, header size, body size
DIGEST_SIZE = 32  # bytes of a SHA-256
SIGNATURE_SIZE = 64  # bytes of an Ed25519 signature
MAX_HEADER = 64 * 1024  # bytes of a serialized header
CONTEXT = b"fedcompress-envelope-v1\0"  # begins every signed statement, so that it is taken for no other kind
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits say what a receiver allows; they are checked before anything is allocated."""

    max_body: int  # bytes of all sections together

    def __post_init__(self) -> None:
        if self.max_body < 0:
            raise ConfigError("limits.max_body", self.max_body, "must be >= 0 bytes")

    @classmethod
    def for_numel(cls, numel: int) -> Limits:
        """Return limits that are enough for any of our codecs on ``numel`` parameters: 8 bytes each and 1 MiB."""
        return cls(max_body=8 * numel + (1 << 20))


@dataclass(frozen=True)
class Seal:
    """The seal is the end of an envelope: its SHA-256 (32 bytes), and a signature of 64 bytes or none."""

    digest: bytes
    signature: bytes

    @property
    def statement(self) -> bytes:
        """Return the bytes that are signed.

        Run, site, round and base need not be named in it: they are in the header, which the digest covers.
        """
        return CONTEXT + self.digest


@dataclass(frozen=True)
class Frame:
    """A frame has the sizes that the prefix of an envelope promises, in bytes."""

    header: int
    signed: bool
    checked: int  # bytes that the SHA-256 covers: prefix, header and body

    @property
    def total(self) -> int:
        """Return the bytes of the whole envelope, with its SHA-256 and its signature."""
        return self.checked + DIGEST_SIZE + (SIGNATURE_SIZE if self.signed else 0)


@dataclass(frozen=True)
class CheckedFrame:
    """Holds the bytes of one envelope whose SHA-256 was found to match, so that nobody need hash them again.

    ``unpack`` and ``sign_envelope`` take it in place of the bytes.
    """

    data: bytes = field(repr=False)
    frame: Frame
    seal: Seal


def read_prefix(data: bytes | memoryview, limits: Limits) -> Frame:
    """Check the fixed prefix of an envelope and return the sizes in it.

    Raises:
        WireError: the prefix is malformed or beyond the limits.
    """
    if len(data) < PREFIX.size:
        raise TruncatedError(f"envelope: {len(data)} bytes: at least {PREFIX.size + DIGEST_SIZE}")
    magic, version, flags, head_size, body_size = PREFIX.unpack(data[: PREFIX.size])
    if magic != MAGIC:
        raise BadMagicError(f"envelope.magic: {bytes(magic).hex()}: must be {MAGIC.hex()}")
    if not OLDEST_VERSION <= version <= WIRE_VERSION:
        raise VersionError(f"envelope.version: {version}: this library reads {OLDEST_VERSION} to {WIRE_VERSION}")
    known_flags = SIGNED if version > OLDEST_VERSION else 0
    if flags & ~known_flags:
        raise VersionError(f"envelope.flags: {flags:#x}: must be within {known_flags:#x} in version {version}")
    if head_size > MAX_HEADER:
        raise LimitError(f"envelope.header_size: {head_size}: at most {MAX_HEADER}")
    if body_size > limits.max_body:
        raise LimitError(f"envelope.body_size: {body_size}: at most {limits.max_body}")
    return Frame(head_size, bool(flags & SIGNED), PREFIX.size + head_size + body_size)


def size_of(prefix: bytes, limits: Limits) -> int:
    """Return the bytes of the whole envelope of which these are the first 20 or more.

    Raises:
        WireError: the prefix is malformed or beyond the limits.
    """
    return read_prefix(prefix, limits).total


def check_frame(data: bytes | CheckedFrame, limits: Limits) -> CheckedFrame:
    """Check prefix, sizes and SHA-256 of one envelope; the signature is cut out, and nobody has verified it.

    Bytes that were checked before are not hashed again; only their sizes are compared with these limits.

    Raises:
        WireError: the envelope is malformed; there is one subclass for each way.
    """
    if isinstance(data, CheckedFrame):
        read_prefix(data.data, limits)
        return data
    frame = read_prefix(data, limits)
    if len(data) < frame.total:
        raise TruncatedError(f"envelope: {len(data)} bytes: {frame.total} were promised")
    if len(data) > frame.total:
        raise TrailingBytesError(f"envelope: {len(data)} bytes: {frame.total} were promised")
    end = frame.checked + DIGEST_SIZE
    digest = data[frame.checked : end]
    if hashlib.sha256(memoryview(data)[: frame.checked]).digest() != digest:
        raise ChecksumError("envelope: SHA-256 does not match: the bytes were changed")
    return CheckedFrame(data, frame, Seal(digest, data[end:]))


def seal_of(data: bytes | CheckedFrame, limits: Limits) -> Seal:
    """Check one envelope and return its digest and signature, before anything in it is decoded.

    Raises:
        WireError: the envelope is malformed; there is one subclass for each way.
    """
    return check_frame(data, limits).seal


def digest_of(data: bytes) -> bytes:
    """Return the digest that names a packed envelope: the SHA-256 that stands at its end, before a signature.

    It is read and not computed: the bytes are hashed by ``pack`` and by ``check_frame`` alone.
    """
    signed = len(data) >= PREFIX.size and PREFIX.unpack(data[: PREFIX.size])[2] & SIGNED
    end = len(data) - (SIGNATURE_SIZE if signed else 0)
    return data[end - DIGEST_SIZE : end]


def sign_envelope(data: bytes | CheckedFrame, sign: Sign) -> bytes:
    """Return the same envelope with a signature; one that it had is replaced.

    The digest says that there is a signature, but not which: signing with another key keeps it.

    Args:
        data: a packed envelope.
        sign: makes the Ed25519 signature, 64 bytes, of the bytes that it is called with.

    Raises:
        WireError: the envelope is malformed.
    """
    envelope = data if isinstance(data, CheckedFrame) else check_frame(data, Limits(max_body=len(data)))
    magic, _, _, head_size, body_size = PREFIX.unpack(envelope.data[: PREFIX.size])
    prefix = PREFIX.pack(magic, WIRE_VERSION, SIGNED, head_size, body_size)
    covered = prefix + envelope.data[PREFIX.size : envelope.frame.checked]
    seal = Seal(hashlib.sha256(covered).digest(), b"")
    return covered + seal.digest + sign(seal.statement)


def split_bundle(data: bytes, limits: Limits, *, max_envelopes: int = 100_000) -> list[bytes]:
    """Split concatenated envelopes by the sizes in their prefixes; nothing is hashed or decoded.

    Args:
        data: envelopes one behind the other, without gaps; may be empty.
        limits: what each of them may have.
        max_envelopes: how many of them there may be.

    Returns:
        The bytes of each envelope, in order.

    Raises:
        WireError: a prefix is malformed, the last envelope is incomplete, or there are too many.
    """
    envelopes: list[bytes] = []
    view = memoryview(data)
    start = 0
    while start < len(data):
        if len(envelopes) == max_envelopes:
            raise LimitError(f"bundle: more than {max_envelopes} envelopes")
        total = read_prefix(view[start:], limits).total
        if start + total > len(data):
            raise TruncatedError(f"bundle: {len(data) - start} bytes left: {total} were promised")
        envelopes.append(data[start : start + total])
        start += total
    return envelopes
