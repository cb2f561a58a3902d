"""Values as they are, in four bytes or rounded to two."""

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
    """Little-endian float32, four bytes each."""

    name: ClassVar[str] = "none"

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """The values, without gaps."""
        for value in values:
            writer.raw(value.astype("<f4").tobytes())

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """The values."""
        return [np.frombuffer(reader.raw(4 * size), "<f4").astype(np.float32) for size in (p.count for p in places)]


@dataclass(frozen=True, kw_only=True)
class BFloat16:
    """Rounded to nearest even bfloat16, two bytes each."""

    name: ClassVar[str] = "bf16"

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """The rounded values, without gaps."""
        for value in values:
            writer.raw(bfloat16.to_bfloat16(value).astype("<u2").tobytes())

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """The rounded values."""
        return [bfloat16.from_bfloat16(np.frombuffer(reader.raw(2 * p.count), "<u2").astype(np.uint16)) for p in places]
