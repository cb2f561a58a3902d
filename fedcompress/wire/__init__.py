"""The envelope: header and sections to bytes and back."""

from fedcompress.wire.envelope import (
    Envelope,
    Header,
    Kind,
    Limits,
    digest_of,
    pack,
    size_of,
    split_bundle,
    unpack,
)

__all__ = ["Envelope", "Header", "Kind", "Limits", "digest_of", "pack", "size_of", "split_bundle", "unpack"]
