"""The contract that every selector, quantizer and code keeps.

A clause of a codec spec is either a ``TensorCode``, which codes whole tensors, or a chain: a ``Selector`` chooses
entries, and a ``Quantizer`` writes their values. Each of them is a frozen dataclass whose fields are the parameters
of the spec, and each is a row of ``CODECS`` (``table.py``), which also states its law.

Three rules hold for all of them. Equal input and equal hints give equal bytes. A decoder takes shapes from the
receiver's own layout, never from the bytes. Bytes that do not decode raise ``PayloadError`` and nothing else.
"""

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


@dataclass(frozen=True)
class Support:
    """A support says which entries of one tensor are sent.

    Args:
        shape: of the tensor.
        positions: flat positions in C order, ascending, int64; None means all entries.
    """

    shape: Shape
    positions: Indices | None = None

    @property
    def numel(self) -> int:
        """Return the number of entries of the tensor."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Return the number of entries that are sent."""
        return self.numel if self.positions is None else self.positions.size


class Selector(Protocol):
    """A selector chooses the entries of each tensor that are sent; all others decode to 0."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **kwargs: Any) -> None: ...

    @property
    def gain(self) -> float:
        """Return the factor that chosen entries are multiplied by before they are quantized."""
        ...

    def select(self, values: Sequence[Array], shapes: Sequence[Shape], seed: int) -> list[Indices]:
        """Choose entries of the tensors of a clause.

        Args:
            values: one flat float32 vector a tensor.
            shapes: the shapes of these tensors.
            seed: of all randomness, from 0 to 2^63 - 1.

        Returns:
            For each tensor the chosen flat positions, ascending, int64; there may be none.
        """
        ...

    def write(self, writer: Writer, supports: Sequence[Support], seed: int) -> None:
        """Append what a reader needs to know the positions.

        Args:
            writer: receives the bytes.
            supports: one a tensor, with what ``select`` chose.
            seed: the one that ``select`` was called with.
        """
        ...

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
        """Read the supports that ``write`` wrote, one for each shape.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...


class Quantizer(Protocol):
    """A quantizer writes float32 values, and reads back the values that the receiver will use."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **kwargs: Any) -> None: ...

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int) -> None:
        """Append the values of the entries that are sent.

        Args:
            writer: receives the bytes.
            values: one flat, finite float32 vector a tensor, of length ``support.count``.
            supports: which entries of their tensors these values are.
            seed: of all randomness, from 0 to 2^63 - 1.
        """
        ...

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read one flat float32 vector of length ``support.count`` for each support.

        The caller refuses values that are not finite.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EncoderHints:
    """Holds what an encoder may use beside the values; a decoder never needs it.

    Args:
        seed: of all randomness, from 0 to 2^63 - 1.
        last: the update that this sender sent before, by tensor name, as it was decoded. Codes that iterate start
            from it. None at the first update.
        importance: by tensor name, how much the squared error of each entry of the tensor's first dimension counts,
            shape (shape[0],), as from a Fisher diagonal summed over rows. None weighs all alike.
        shared: a seed that all senders of a run have in a round, from 0 to 2^63 - 1.
    """

    seed: int = 0
    last: Mapping[str, Array] | None = None
    importance: Mapping[str, Array] | None = None
    shared: int = 0


NO_HINTS = EncoderHints()


class TensorCode(Protocol):
    """A tensor code encodes the tensors of a clause as a whole.

    ``uses_previous_update`` is True where it starts from ``EncoderHints.last``.
    """

    name: ClassVar[str]
    uses_previous_update: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints) -> bytes:
        """Encode the tensors of a clause.

        Args:
            members: the tensors of the clause, in layout order.
            values: their values: finite float32 arrays of the members' shapes. They are not changed.
            hints: seeds and other help for the encoder.

        Returns:
            The body of a section, without its version byte.
        """
        ...

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode one float32 tensor for each member, of its shape, bit-identical on every machine.

        The caller refuses values that are not finite.

        Raises:
            PayloadError: the bytes do not decode.
        """
        ...
