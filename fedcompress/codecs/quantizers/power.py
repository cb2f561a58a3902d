"""Quantizes by a power law, with levels that are denser near zero."""

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
from fedcompress.errors import ConfigError
from fedcompress.types import Array

ROOTS = (2, 4)


@dataclass(frozen=True, kw_only=True)
class Power:
    """Quantizes ``sign(x) |x|^(1/root)`` uniformly, and raises it to that power again when it decodes.

    These are the automorphisms of NUPES (Yvinec et al. 2023, arXiv:2308.05600, section 3). NUPES learns any
    exponent; here it is 1/2 or 1/4, whose inverses are products, since a power by logarithms differs between
    machines.

    Args:
        bits: from 2 to 8.
        root: 2 or 4.
        block: entries that share a scale, their largest magnitude; 0 means one block a tensor.

    >>> from fedcompress.codecs import preview
    >>> print(preview("power(bits=4)", [0.9, -0.2, -1.1, 0.1]))
    7 bytes, relative squared error 0.004: [0.809, -0.202, -1.1, 0.0899]
    """

    name: ClassVar[str] = "power"
    bits: int = 4
    root: int = 2
    block: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError("codec.power.bits", self.bits, "must be from 2 to 8")
        if self.root not in ROOTS:
            raise ConfigError("codec.power.root", self.root, f"one of {list(ROOTS)}")
        check_block("codec.power.block", self.block)

    @property
    def top(self) -> int:
        """Return the largest level, ``2^(bits - 1) - 1``."""
        return int((1 << (self.bits - 1)) - 1)

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append the scales of all blocks, then the levels of all entries."""
        scales, ratio = normalize_blocks(values, self.block)
        share = np.abs(ratio)
        for _ in range(self.root // 2):
            share = np.sqrt(share)
        level = np.rint(share * np.float32(self.top))
        signed = np.where(ratio < 0, -level, level).astype(np.int64)
        write_blocks(writer, scales, signed + self.top, 2 * self.top + 1)

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read levels, raise them to the power and multiply them by their scales."""
        scale, symbols = read_blocks(reader, [s.count for s in supports], self.block, 2 * self.top + 1)
        level = (symbols - self.top).astype(np.float32)
        ratio = np.abs(level) / np.float32(self.top)
        for _ in range(self.root // 2):
            ratio = ratio * ratio
        return split_by_support(np.where(level < 0, -ratio, ratio).astype(np.float32) * scale, supports)
