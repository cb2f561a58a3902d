"""The envelope: header and sections to bytes and back."""

from fedcompress.wire.envelope import Envelope, Header, Kind, pack, unpack
from fedcompress.wire.frame import Limits, Seal, digest_of, seal_of, sign_envelope, size_of, split_bundle

__all__ = [
    "Envelope",
    "Header",
    "Kind",
    "Limits",
    "Seal",
    "digest_of",
    "pack",
    "seal_of",
    "sign_envelope",
    "size_of",
    "split_bundle",
    "unpack",
]
