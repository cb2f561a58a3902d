"""Writes values as they are, in four bytes, or rounded to two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.numerics import bfloat16
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Writes values as little-endian float32, four bytes each, without loss.

    >>> from fedcompress.codecs import preview
    >>> print(preview("none", [0.9, -0.2, -1.1, 0.1]))
    17 bytes, relative squared error 0: [0.9, -0.2, -1.1, 0.1]
    """

    name: ClassVar[str] = "none"

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append the values, without gaps."""
        for value in values:
            writer.raw(value.astype("<f4").tobytes())

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read the values, which may be NaN or infinite in bytes that lie."""
        return [np.frombuffer(reader.raw(4 * s.count), "<f4").astype(np.float32) for s in supports]


@dataclass(frozen=True, kw_only=True)
class BFloat16:
    """Rounds values to the nearest bfloat16, ties to even, two bytes each; the relative error is at most 2^-8.

    >>> from fedcompress.codecs import preview
    >>> print(preview("bf16", [0.9, -0.2, -1.1, 0.1]))
    9 bytes, relative squared error 2.4e-06: [0.898, -0.2, -1.1, 0.1]
    """

    name: ClassVar[str] = "bf16"

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append the rounded values, without gaps."""
        for value in values:
            writer.raw(bfloat16.to_bfloat16(value).astype("<u2").tobytes())

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read the rounded values, which may be NaN or infinite in bytes that lie."""
        values = []
        for support in supports:
            bits = np.frombuffer(reader.raw(2 * support.count), "<u2").astype(np.uint16)
            values.append(bfloat16.from_bfloat16(bits))
        return values
