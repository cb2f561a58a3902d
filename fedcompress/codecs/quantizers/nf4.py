"""Quantizes to 4-bit NormalFloat: sixteen levels at the quantiles of a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.quantizers.blocks import (
    check_block,
    normalize_blocks,
    read_blocks,
    split_by_support,
    write_blocks,
)
from fedcompress.types import Array

# The levels of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E), as shares of a block's largest magnitude.
LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


@dataclass(frozen=True, kw_only=True)
class NormalFloat:
    """Rounds each value to the nearest of the 16 levels of NF4 times the largest magnitude of its block.

    It differs from ``quantize_nf4`` of bitsandbytes in the scale, which is a bfloat16, rounded up, where theirs is a
    float32, and in that symbols are entropy-coded.

    Args:
        block: entries that share a scale; 0 means one block a tensor.

    >>> from fedcompress.codecs import preview
    >>> print(preview("nf4", [0.9, -0.2, -1.1, 0.1]))
    7 bytes, relative squared error 0.0053: [0.796, -0.204, -1.1, 0.0877]
    """

    name: ClassVar[str] = "nf4"
    block: int = 64

    def __post_init__(self) -> None:
        check_block("codec.nf4.block", self.block)

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append the scales of all blocks, then the levels of all entries."""
        scales, ratio = normalize_blocks(values, self.block)
        middles = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
        write_blocks(writer, scales, np.searchsorted(middles, ratio), LEVELS.size)

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read levels and multiply them by their scales."""
        scale, symbols = read_blocks(reader, [s.count for s in supports], self.block, LEVELS.size)
        return split_by_support(LEVELS[symbols] * scale, supports)
