"""QSGD: stochastic rounding of magnitudes to a few levels of the norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.quantizers.blocks import check_block, largest_by_block, ratios, read_blocks, split, write_blocks
from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import uniform
from fedcompress.types import Array


def _euclidean(flat: Array, index: NDArray[np.int64], blocks: int) -> Array:
    """Norm of each block, never less than the exact one."""
    exact = np.sqrt(np.bincount(index, np.square(flat, dtype=np.float64), blocks))
    return np.minimum(exact * (1 + 1e-6), np.finfo(np.float32).max).astype(np.float32)


_NORMS = {"l2": _euclidean, "max": largest_by_block}


@dataclass(frozen=True, kw_only=True)
class QSGD:
    """Multiples of ``norm / levels``, rounded up or down at random: the expected value is the entry.

    Alistarh et al. 2017 (arXiv:1610.02132, section 3.1); ``norm="max"`` is the variant of
    their experiments (section 5), with less variance. The norm is rounded up to bfloat16 first,
    and symbols are coded by a counted model in place of the paper's Elias code.
    """

    name: ClassVar[str] = "qsgd"
    levels: int = 4
    norm: str = "max"
    block: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 127:
            raise ConfigError("codec.qsgd.levels", self.levels, "must be from 1 to 127")
        if self.norm not in _NORMS:
            raise ConfigError("codec.qsgd.norm", self.norm, f"one of {list(_NORMS)}")
        check_block("codec.qsgd.block", self.block)

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """Norms of all blocks, then the multiples of all entries."""
        scales, ratio = ratios(values, self.block, _NORMS[self.norm])
        share = np.abs(ratio) * np.float32(self.levels)
        low = np.floor(share)
        level = np.minimum(low + (uniform(seed, "qsgd", ratio.size) < share - low), self.levels)
        signed = np.where(ratio < 0, -level, level).astype(np.int64)
        write_blocks(writer, scales, signed + self.levels, 2 * self.levels + 1)

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """Multiples of the norms."""
        scale, symbols = read_blocks(reader, [p.count for p in places], self.block, 2 * self.levels + 1)
        share = (symbols - self.levels).astype(np.float32) / np.float32(self.levels)
        return split(share * scale, places)
