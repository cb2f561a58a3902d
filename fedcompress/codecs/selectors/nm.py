"""Selection of n of every m entries, the pattern that sparse tensor cores take."""

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
from fedcompress.codecs.selectors.chunked import largest_in_rows
from fedcompress.errors import ConfigError
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class NM:
    """Keep the ``n`` largest of every ``m`` consecutive entries (Mishra et al. 2021, arXiv:2104.08378).

    What is left over at the end of a tensor, less than ``m`` entries, is kept whole. A group is
    sent as the number of its pattern: ``log2(C(m, n))`` bits or less, since patterns are counted.
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
        """Positions in flat float32 vectors."""
        out = []
        for value in values:
            whole = value.size // self.m * self.m
            places = largest_in_rows(np.abs(value[:whole]).reshape(-1, self.m), self.n)
            out.append(np.concatenate([places, np.arange(whole, value.size)]))
        return out

    def _patterns(self) -> NDArray[np.int64]:
        return np.array(list(combinations(range(self.m), self.n)))

    def write(self, writer: Writer, places: Sequence[Support], seed: int) -> None:
        """Append the patterns of all groups."""
        patterns = self._patterns()
        number = np.zeros(1 << self.m, np.int32)
        number[(1 << patterns).sum(1)] = np.arange(len(patterns))
        symbols = [np.zeros(0, np.int32)]
        for place in places:
            assert place.positions is not None
            groups = place.positions[: place.numel // self.m * self.n].reshape(-1, self.n) % self.m
            symbols.append(number[(1 << groups).sum(1)])
        write_symbols(writer, np.concatenate(symbols), comb(self.m, self.n))

    def read(self, reader: Reader, shapes: Sequence[tuple[int, ...]]) -> list[Support]:
        """Inverse of ``write``."""
        sizes = [Support(s).numel for s in shapes]
        symbols = read_symbols(reader, sum(n // self.m for n in sizes), comb(self.m, self.n))
        patterns, at, out = self._patterns(), 0, []
        for shape, size in zip(shapes, sizes, strict=True):
            groups = size // self.m
            inside = patterns[symbols[at : at + groups]] + self.m * np.arange(groups)[:, None]
            at += groups
            out.append(Support(shape, np.concatenate([inside.ravel(), np.arange(groups * self.m, size)])))
        return out
