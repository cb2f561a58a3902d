"""What a stage is, and the byte buffers that stages write to and read from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import PayloadError
from fedcompress.types import Array, TensorSpec

Positions = NDArray[np.int64]
Shape = tuple[int, ...]
VERSION = 2  # of the sections that are written


class Writer:
    """Appends little-endian fields to a growing buffer."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Append bytes as they are; the reader must know how many."""
        self._parts.append(data)

    def u8(self, value: int) -> None:
        """Append one byte."""
        self._parts.append(bytes([value]))

    def i8(self, value: int) -> None:
        """Append a signed byte."""
        self._parts.append(value.to_bytes(1, "little", signed=True))

    def varint(self, value: int) -> None:
        """Append an unsigned LEB128 integer below 2^63."""
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self._parts.append(bytes(out))

    def stream(self, data: bytes) -> None:
        """Append bytes with their length in front."""
        self.varint(len(data))
        self._parts.append(data)

    def getvalue(self) -> bytes:
        """All bytes so far."""
        return b"".join(self._parts)


class Reader:
    """Reads what ``Writer`` wrote; every overrun is a ``PayloadError``. ``version`` is the section's."""

    def __init__(self, data: bytes, version: int = VERSION) -> None:
        self._data = data
        self._at = 0
        self.version = version

    def raw(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > len(self._data) - self._at:
            raise PayloadError(f"section: {len(self._data) - self._at} bytes left: {size} needed")
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def u8(self) -> int:
        """The next byte."""
        return self.raw(1)[0]

    def i8(self) -> int:
        """The next signed byte."""
        return int.from_bytes(self.raw(1), "little", signed=True)

    def varint(self) -> int:
        """The next unsigned LEB128 integer; only its shortest form is accepted."""
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
        """The next length-prefixed bytes."""
        return self.raw(self.varint())

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.raw(len(self._data) - self._at)

    def finish(self) -> None:
        """Raise if bytes are left over."""
        if self._at != len(self._data):
            raise PayloadError(f"section: {len(self._data) - self._at} bytes left over: must be 0")


def saturated(values: Array, exponent: int = 0) -> Array:
    """Values times ``2^exponent``, rounded once; beyond the range of float32 they become its ends. NaN stays."""
    top = np.finfo(np.float32).max
    with np.errstate(over="ignore", under="ignore"):
        scaled = values if exponent == 0 else np.ldexp(values, np.int32(exponent))
        clipped: Array = np.clip(scaled, -top, top)
    return clipped


def exponent_of(values: Sequence[Array]) -> int:
    """0 where products of float32 are safe, else what brings the largest magnitude near 1."""
    largest = max((float(np.abs(v).max(initial=0)) for v in values), default=0.0)
    if largest == 0 or 1e-12 <= largest <= 1e12:
        return 0
    return min(max(math.frexp(largest)[1], -128), 127)


@dataclass(frozen=True)
class Places:
    """The entries of a tensor that are sent: sorted flat positions, or None for all of them."""

    shape: Shape
    positions: Positions | None = None

    @property
    def numel(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Entries that are sent."""
        return self.numel if self.positions is None else self.positions.size


class Selector(Protocol):
    """Chooses the entries of each tensor that are sent; the others decode to 0."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **kwargs: Any) -> None: ...

    @property
    def gain(self) -> float:
        """What the chosen entries are multiplied by."""
        ...

    def select(self, values: Sequence[Array], shapes: Sequence[Shape], seed: int) -> list[Positions]:
        """Sorted positions for each flat tensor."""
        ...

    def write(self, writer: Writer, places: Sequence[Places], seed: int) -> None:
        """Append what the reader needs to know the positions."""
        ...

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Places]:
        """Inverse of ``write``.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...


class Quantizer(Protocol):
    """Writes flat float32 vectors, and reads back what the receiver will use."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **kwargs: Any) -> None: ...

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Places], seed: int) -> None:
        """Append the values at the given places."""
        ...

    def read(self, reader: Reader, places: Sequence[Places]) -> list[Array]:
        """Decode the values at the given places, all finite.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What an encoder may use beside the values; a decoder never needs it.

    Args:
        seed: of all randomness, from 0 to 2^63 - 1.
        last: the update that this sender sent before, as it was decoded, to start from.
        importance: by tensor name, how much the squared error of each entry of its first
            dimension counts, as from a Fisher diagonal summed over rows.
        shared: a seed that all senders of a run have in a round.
    """

    seed: int = 0
    last: Mapping[str, Array] | None = None
    importance: Mapping[str, Array] | None = None
    shared: int = 0


NO_HINTS = Hints()


class Code(Protocol):
    """Codes the tensors of a clause as a whole."""

    name: ClassVar[str]
    warm: ClassVar[bool]  # whether it starts from the update that was sent before
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: Hints) -> bytes:
        """A section's body from finite float32 tensors; equal input gives equal bytes."""
        ...

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Finite float32 tensors of the members' shapes, equal on every machine.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...
