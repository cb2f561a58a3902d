"""Quantizes by QSGD, which rounds magnitudes stochastically to a few levels of the block's norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.quantizers.blocks import (
    check_block,
    find_block_maxima,
    normalize_blocks,
    read_blocks,
    split_by_support,
    write_blocks,
)
from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import uniform
from fedcompress.types import Array


def _euclidean(flat: Array, index: NDArray[np.int64], blocks: int) -> Array:
    """Return the Euclidean norm of each block, never less than the exact one."""
    exact = np.sqrt(np.bincount(index, np.square(flat, dtype=np.float64), blocks))
    return np.minimum(exact * (1 + 1e-6), np.finfo(np.float32).max).astype(np.float32)


_NORMS = {"l2": _euclidean, "max": find_block_maxima}


@dataclass(frozen=True, kw_only=True)
class QSGD:
    """Rounds values to multiples of ``norm / levels``, up or down at random: the expected value is the entry.

    Alistarh et al. 2017 (arXiv:1610.02132, section 3.1); ``norm="max"`` is the variant of their experiments
    (section 5), which has less variance. Other than in the paper, the norm is rounded up to bfloat16 first, and
    symbols are coded by their counted frequencies instead of by an Elias code.

    Args:
        levels: multiples of each sign, from 1 to 127.
        norm: ``max``, the largest magnitude, or ``l2``, the Euclidean norm.
        block: entries that share a norm; 0 means one block a tensor.

    >>> from fedcompress.codecs import preview
    >>> print(preview("qsgd", [0.9, -0.2, -1.1, 0.1]))
    7 bytes, relative squared error 0.02: [0.826, -0.275, -1.1, 0.275]
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

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append the norms of all blocks, then the multiples of all entries."""
        scales, ratio = normalize_blocks(values, self.block, _NORMS[self.norm])
        share = np.abs(ratio) * np.float32(self.levels)
        low = np.floor(share)
        level = np.minimum(low + (uniform(seed, "qsgd", ratio.size) < share - low), self.levels)
        signed = np.where(ratio < 0, -level, level).astype(np.int64)
        write_blocks(writer, scales, signed + self.levels, 2 * self.levels + 1)

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read multiples and multiply them by ``norm / levels``."""
        scale, symbols = read_blocks(reader, [s.count for s in supports], self.block, 2 * self.levels + 1)
        share = (symbols - self.levels).astype(np.float32) / np.float32(self.levels)
        return split_by_support(share * scale, supports)
