"""Selects by magnitude in chunks of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPositions
from fedcompress.errors import ConfigError
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Chunked(CodedPositions):
    """Keeps the ``k`` entries of largest magnitude of every ``of`` consecutive ones.

    SparseLoCo (arXiv:2508.15706) takes 64 of 4096. A last, shorter chunk keeps the same share, rounded up. Of equal
    magnitudes those with the lowest index are kept.

    Args:
        k: entries that are kept of a chunk, from 1 to ``of``.
        of: entries of a chunk, from 1 to 2^24.

    >>> from fedcompress.codecs import preview
    >>> print(preview("chunk(k=1,of=4)|bf16", [3, -1, 0, 2, 0, 0.5, -4, 1]))
    9 bytes, relative squared error 0.2: [3, 0, 0, 0, 0, 0, -4, 0]
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
        """Choose the largest entries of each chunk of each vector."""
        return [self._select_one(v) for v in values]

    def _select_one(self, value: Array) -> Indices:
        whole = value.size // self.of * self.of  # entries in chunks that are not cut short
        positions = find_largest_in_rows(np.abs(value[:whole]).reshape(-1, self.of), self.k)
        rest = np.abs(value[whole:]).reshape(1, -1)
        tail = find_largest_in_rows(rest, -(-self.k * rest.size // self.of))
        return np.concatenate([positions, tail + whole])


def find_largest_in_rows(magnitudes: Array, count: int) -> Indices:
    """Return the flat positions, ascending, of the ``count`` largest magnitudes of each row.

    Of equal magnitudes those with the lowest index are taken. ``count`` is at most the number of columns.
    """
    rows, columns = magnitudes.shape
    if not rows or not columns or not count:
        return np.zeros(0, np.int64)
    threshold = np.partition(magnitudes, columns - count, axis=1)[:, columns - count, None]
    above = magnitudes > threshold
    ties = magnitudes == threshold
    room = count - above.sum(1, keepdims=True)
    return np.flatnonzero(above | (ties & (np.cumsum(ties, 1) <= room)))
