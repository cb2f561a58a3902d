"""Selects at random, from a seed that is all that a reader needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import words
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Random:
    """Keeps each entry with probability ``density``, and divides it by ``q``.

    DARE (Yu et al. 2024, arXiv:2311.03099, section 3.1) divides by the keep rate, as ``q=0`` does here: then the
    expected value is the entry itself. DAREx-q (Deng et al. 2025, arXiv:2410.09344, section 4) takes a larger q,
    which trades bias for variance; ``fedcompress.codecs.calibrate`` finds one. Both ends draw the mask from the seed,
    so that positions take a few bytes. It is not for error feedback: with ``q < 2 * density`` the error grows.

    Args:
        density: the probability that an entry is kept, above 0 and at most 1.
        q: the divisor, from 1e-6 to 1; 0 means ``density``.

    >>> from fedcompress.codecs import preview
    >>> print(preview("random(density=0.5)|bf16", [3, -1, 0, 2, 0, 0.5, -4, 1]))
    14 bytes, relative squared error 1: [0, -2, 0, 4, 0, 1, -8, 2]
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
        """Return the factor that kept entries are multiplied by, ``1 / q``."""
        return 1.0 / (self.q or self.density)

    def _draw_positions(self, seed: int, number: int, size: int) -> Indices:
        """Draw the positions of the tensor with this number in its clause."""
        if self.density == 1:
            return np.arange(size)
        return np.flatnonzero(words(seed, f"mask/{number}", size) < np.uint32(self.density * 2**32))

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Choose positions at random, independent of the values."""
        return [self._draw_positions(seed, i, v.size) for i, v in enumerate(values)]

    def write(self, writer: Writer, supports: Sequence[Support], seed: int) -> None:
        """Append the seed."""
        writer.varint(seed)

    def read(self, reader: Reader, shapes: Sequence[Shape]) -> list[Support]:
        """Read the seed and draw the positions again."""
        seed = reader.varint()
        return [Support(s, self._draw_positions(seed, i, Support(s).numel)) for i, s in enumerate(shapes)]
