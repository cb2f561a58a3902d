"""NormalFloat, 4 bits: sixteen quantiles of a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.quantizers.blocks import check_block, ratios, read_blocks, split, write_blocks
from fedcompress.types import Array

# Levels of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
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
    """Nearest of the 16 levels of NF4 times the largest magnitude of a block.

    As bitsandbytes' ``quantize_nf4``, but with a bfloat16 scale, rounded up, in place of its
    float32 one, and with symbols that are entropy-coded.
    """

    name: ClassVar[str] = "nf4"
    block: int = 64

    def __post_init__(self) -> None:
        check_block("codec.nf4.block", self.block)

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """Scales of all blocks, then the levels of all entries."""
        scales, ratio = ratios(values, self.block)
        middles = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
        write_blocks(writer, scales, np.searchsorted(middles, ratio), LEVELS.size)

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """Level times scale."""
        scale, symbols = read_blocks(reader, [p.count for p in places], self.block, LEVELS.size)
        return split(LEVELS[symbols] * scale, places)
