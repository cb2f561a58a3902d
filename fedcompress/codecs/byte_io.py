"""Reads and writes the little-endian fields of a section, and refuses what is malformed.

``protos/README.md`` specifies the format for other languages.
"""

from __future__ import annotations

from fedcompress.errors import PayloadError

SECTION_VERSION = 2  # the version of sections that are written, in the first byte of each


class Writer:
    """Appends little-endian fields to a growing buffer."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Append bytes as they are; the reader must know how many they are."""
        self._parts.append(data)

    def u8(self, value: int) -> None:
        """Append an integer from 0 to 255 as one byte."""
        self._parts.append(bytes([value]))

    def i8(self, value: int) -> None:
        """Append an integer from -128 to 127 as one byte, in two's complement."""
        self._parts.append(value.to_bytes(1, "little", signed=True))

    def varint(self, value: int) -> None:
        """Append an integer from 0 to 2^63 - 1 in unsigned LEB128: 7 bits a byte, lowest first."""
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self._parts.append(bytes(out))

    def stream(self, data: bytes) -> None:
        """Append bytes with their number in front, as a varint."""
        self.varint(len(data))
        self._parts.append(data)

    def getvalue(self) -> bytes:
        """Return all bytes that were appended so far."""
        return b"".join(self._parts)


class Reader:
    """Reads the fields that ``Writer`` wrote; an overrun raises ``PayloadError``.

    Args:
        data: a section without its version byte.
        version: the section's version, which some decoders look at.
    """

    def __init__(self, data: bytes, version: int = SECTION_VERSION) -> None:
        self._data = data
        self._at = 0
        self.version = version

    def raw(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if size > len(self._data) - self._at:
            raise PayloadError(f"section: {len(self._data) - self._at} bytes left: {size} needed")
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def u8(self) -> int:
        """Read one byte as an integer from 0 to 255."""
        return self.raw(1)[0]

    def i8(self) -> int:
        """Read one byte as an integer from -128 to 127."""
        return int.from_bytes(self.raw(1), "little", signed=True)

    def varint(self) -> int:
        """Read an unsigned LEB128 integer below 2^63; only its shortest form is accepted."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and byte == 0:
                    raise PayloadError("section: varint: not in its shortest form")
                return value
            shift += 7
            if shift > 56:
                raise PayloadError("section: varint: must be below 2^63")

    def stream(self) -> bytes:
        """Read bytes that have their number in front."""
        return self.raw(self.varint())

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.raw(len(self._data) - self._at)

    def finish(self) -> None:
        """Raise ``PayloadError`` if bytes are left over."""
        if self._at != len(self._data):
            raise PayloadError(f"section: {len(self._data) - self._at} bytes left over: must be 0")
