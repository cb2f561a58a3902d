"""Seeds in a payload; what is drawn from them is in ``fedcompress.philox``."""

from __future__ import annotations

from fedcompress.codecs.base import Reader, Writer


def write_seed(writer: Writer, seed: int) -> None:
    """Append a seed."""
    writer.varint(seed)


def read_seed(reader: Reader) -> int:
    """The next seed; a varint is below 2^63 already."""
    return reader.varint()
