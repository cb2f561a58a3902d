"""Selects n of every m entries, the pattern that sparse tensor cores take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.symbols import read_symbols, write_symbols
from fedcompress.codecs.selectors.chunked import find_largest_in_rows
from fedcompress.errors import ConfigError
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class NM:
    """Keeps the ``n`` entries of largest magnitude of every ``m`` consecutive ones.

    Mishra et al. 2021 (arXiv:2104.08378). The last entries of a tensor, fewer than ``m``, are all kept. A group is
    sent as the number of its pattern, which takes ``log2(C(m, n))`` bits or less, since patterns are entropy-coded.

    Args:
        n: entries that are kept of a group, from 1 to ``m - 1``.
        m: entries of a group, from 2 to 8.

    >>> from fedcompress.codecs import preview
    >>> print(preview("nm|bf16", [3, -1, 0, 2, 0, 0.5, -4, 1]))
    12 bytes, relative squared error 0.04: [3, 0, 0, 2, 0, 0, -4, 1]
    """

    name: ClassVar[str] = "nm"
    gain: ClassVar[float] = 1.0
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.m <= 8:
            raise ConfigError("codec.nm.m", self.m, "must be from 2 to 8")
        if not 1 <= self.n < self.m:
            raise ConfigError("codec.nm.n", self.n, f"must be from 1 to {self.m - 1}")

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Choose the largest entries of each group of each vector."""
        chosen = []
        for value in values:
            whole = value.size // self.m * self.m
            positions = find_largest_in_rows(np.abs(value[:whole]).reshape(-1, self.m), self.n)
            chosen.append(np.concatenate([positions, np.arange(whole, value.size)]))
        return chosen

    def _list_patterns(self) -> NDArray[np.int64]:
        """Return the kept places of each pattern, shape (C(m, n), n), in lexicographic order."""
        return np.array(list(combinations(range(self.m), self.n)))

    def write(self, writer: Writer, supports: Sequence[Support], seed: int) -> None:
        """Append the pattern numbers of all groups of all tensors."""
        patterns = self._list_patterns()
        number_by_mask = np.zeros(1 << self.m, np.int32)
        number_by_mask[(1 << patterns).sum(1)] = np.arange(len(patterns))
        symbols = [np.zeros(0, np.int32)]
        for support in supports:
            assert support.positions is not None
            groups = support.positions[: support.numel // self.m * self.n].reshape(-1, self.n) % self.m
            symbols.append(number_by_mask[(1 << groups).sum(1)])
        write_symbols(writer, np.concatenate(symbols), comb(self.m, self.n))

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
        """Read the pattern numbers and return the positions that they stand for."""
        sizes = [Support(s).numel for s in shapes]
        symbols = read_symbols(reader, sum(n // self.m for n in sizes), comb(self.m, self.n))
        patterns = self._list_patterns()
        supports = []
        at = 0
        for shape, size in zip(shapes, sizes, strict=True):
            groups = size // self.m
            inside = patterns[symbols[at : at + groups]] + self.m * np.arange(groups)[:, None]
            at += groups
            supports.append(Support(shape, np.concatenate([inside.ravel(), np.arange(groups * self.m, size)])))
        return supports
