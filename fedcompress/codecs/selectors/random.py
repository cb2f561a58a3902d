"""Random selection: positions cost a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape, Support, read_seed, write_seed
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import words
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Random:
    """Keep each entry with probability ``density``, and divide it by ``q``.

    DARE (Yu et al. 2024, arXiv:2311.03099, section 3.1) divides by the keep rate, which is
    meant by ``q=0``: then the expected value is the entry itself. DAREx-q (Deng et al.
    2025, arXiv:2410.09344, section 4) takes a larger q, which trades bias for variance;
    ``fedcompress.codecs.calibrate`` finds one. Both ends draw the mask from the seed, so that
    positions take a few bytes. Not for error feedback: with ``q < 2 * density`` the error grows.
    """

    name: ClassVar[str] = "random"
    density: float
    q: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError("codec.random.density", self.density, "must be above 0 and at most 1")
        if self.q and not 1e-6 <= self.q <= 1:
            raise ConfigError("codec.random.q", self.q, "must be 0 (the density) or from 1e-6 to 1")

    @property
    def gain(self) -> float:
        """What kept entries are multiplied by."""
        return 1.0 / (self.q or self.density)

    def _positions(self, seed: int, number: int, size: int) -> Indices:
        if self.density == 1:
            return np.arange(size)
        return np.flatnonzero(words(seed, f"mask/{number}", size) < np.uint32(self.density * 2**32))

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Positions in flat float32 vectors."""
        return [self._positions(seed, i, v.size) for i, v in enumerate(values)]

    def write(self, writer: Writer, places: Sequence[Support], seed: int) -> None:
        """Append the seed."""
        write_seed(writer, seed)

    def read(self, reader: Reader, shapes: Sequence[tuple[int, ...]]) -> list[Support]:
        """The positions of the seed."""
        seed = read_seed(reader)
        return [Support(s, self._positions(seed, i, Support(s).numel)) for i, s in enumerate(shapes)]
