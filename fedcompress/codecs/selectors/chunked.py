"""Selection by magnitude in chunks of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPlaces
from fedcompress.errors import ConfigError
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Chunked(CodedPlaces):
    """Keep the ``k`` largest of every ``of`` consecutive entries.

    SparseLoCo (arXiv:2508.15706) takes 64 of 4096. A last, shorter chunk keeps its share,
    rounded up. Equal magnitudes are kept in the order of their index.
    """

    name: ClassVar[str] = "chunk"
    k: int = 64
    of: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.of <= 1 << 24:
            raise ConfigError("codec.chunk.of", self.of, "must be from 1 to 2^24")
        if not 1 <= self.k <= self.of:
            raise ConfigError("codec.chunk.k", self.k, f"must be from 1 to {self.of}, the chunk")

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Positions in flat float32 vectors."""
        return [self._of_one(v) for v in values]

    def _of_one(self, value: Array) -> Indices:
        whole = value.size // self.of * self.of
        places = largest_in_rows(np.abs(value[:whole]).reshape(-1, self.of), self.k)
        rest = np.abs(value[whole:]).reshape(1, -1)
        tail = largest_in_rows(rest, -(-self.k * rest.size // self.of))
        return np.concatenate([places, tail + whole])


def largest_in_rows(magnitudes: Array, count: int) -> Indices:
    """Flat positions of the ``count`` largest of each row, ties by index, sorted."""
    rows, columns = magnitudes.shape
    if not rows or not columns or not count:
        return np.zeros(0, np.int64)
    threshold = np.partition(magnitudes, columns - count, axis=1)[:, columns - count, None]
    above, ties = magnitudes > threshold, magnitudes == threshold
    room = count - above.sum(1, keepdims=True)
    return np.flatnonzero(above | (ties & (np.cumsum(ties, 1) <= room)))
