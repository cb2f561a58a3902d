"""What a stage is, and the byte buffers that stages write to and read from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.types import Array, TensorSpec

Indices = NDArray[np.int64]
Shape = tuple[int, ...]


def saturate(values: Array, exponent: int = 0) -> Array:
    """Values times ``2^exponent``, rounded once; beyond the range of float32 they become its ends. NaN stays."""
    top = np.finfo(np.float32).max
    with np.errstate(over="ignore", under="ignore"):
        scaled = values if exponent == 0 else np.ldexp(values, np.int32(exponent))
        clipped: Array = np.clip(scaled, -top, top)
    return clipped


def safe_exponent(values: Sequence[Array]) -> int:
    """0 where products of float32 are safe, else what brings the largest magnitude near 1."""
    largest = max((float(np.abs(v).max(initial=0)) for v in values), default=0.0)
    if largest == 0 or 1e-12 <= largest <= 1e12:
        return 0
    return min(max(math.frexp(largest)[1], -128), 127)


@dataclass(frozen=True)
class Support:
    """The entries of a tensor that are sent: sorted flat positions, or None for all of them."""

    shape: Shape
    positions: Indices | None = None

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

    def select(self, values: Sequence[Array], shapes: Sequence[Shape], seed: int) -> list[Indices]:
        """Sorted positions for each flat tensor."""
        ...

    def write(self, writer: Writer, places: Sequence[Support], seed: int) -> None:
        """Append what the reader needs to know the positions."""
        ...

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
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

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int) -> None:
        """Append the values at the given places."""
        ...

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """Decode the values at the given places, all finite.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EncoderHints:
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


NO_HINTS = EncoderHints()


class TensorCode(Protocol):
    """Codes the tensors of a clause as a whole."""

    name: ClassVar[str]
    uses_previous_update: ClassVar[bool]  # whether it starts from the update that was sent before
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints) -> bytes:
        """A section's body from finite float32 tensors; equal input gives equal bytes."""
        ...

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Finite float32 tensors of the members' shapes, equal on every machine.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...


def write_seed(writer: Writer, seed: int) -> None:
    """Append a seed."""
    writer.varint(seed)


def read_seed(reader: Reader) -> int:
    """The next seed; a varint is below 2^63 already."""
    return reader.varint()
