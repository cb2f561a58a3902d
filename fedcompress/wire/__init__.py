"""Turns a header and coded sections into the bytes of an envelope, and reads such bytes back."""

from fedcompress.wire.envelope import Envelope, Header, Kind, pack, unpack
from fedcompress.wire.frame import (
    CheckedFrame,
    Limits,
    Seal,
    check_frame,
    digest_of,
    seal_of,
    sign_envelope,
    size_of,
    split_bundle,
)

__all__ = [
    "CheckedFrame",
    "Envelope",
    "Header",
    "Kind",
    "Limits",
    "Seal",
    "check_frame",
    "digest_of",
    "pack",
    "seal_of",
    "sign_envelope",
    "size_of",
    "split_bundle",
    "unpack",
]
