"""Quantizes uniformly and symmetrically around zero, to a few bits, and entropy-codes the symbols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.symbols import read_symbols, write_symbols
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16
from fedcompress.numerics.philox import uniform
from fedcompress.types import Array

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True, kw_only=True)
class Integer:
    """Rounds each value to one of ``2^bits - 1`` multiples of its block's scale; zero is one of them.

    The scale is the smallest bfloat16 whose largest multiple reaches the block's largest magnitude. With
    ``rounding="nearest"`` the error is at most half a scale. With ``rounding="stochastic"`` values are rounded up or
    down by seeded chance, so that the expected value is the entry (Gupta et al. 2015, arXiv:1502.02551, section 3),
    and the error is below a scale.

    Args:
        bits: from 2 to 8; symbols are entropy-coded, so that fewer are sent.
        block: entries that share a scale; 0 means one block a tensor.
        rounding: one of ``ROUNDINGS``.

    >>> from fedcompress.codecs import preview
    >>> print(preview("int(bits=4)", [0.9, -0.2, -1.1, 0.1]))
    7 bytes, relative squared error 0.0034: [0.943, -0.157, -1.1, 0.157]
    """

    name: ClassVar[str] = "int"
    bits: int = 8
    block: int = 0
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError("codec.int.bits", self.bits, "must be from 2 to 8")
        if self.block < 0:
            raise ConfigError("codec.int.block", self.block, "must be >= 0 (0: one block a tensor)")
        if self.rounding not in ROUNDINGS:
            raise ConfigError("codec.int.rounding", self.rounding, f"one of {list(ROUNDINGS)}")

    @property
    def top(self) -> int:
        """Return the largest multiple of the scale, ``2^(bits - 1) - 1``."""
        return int((1 << (self.bits - 1)) - 1)

    def _slice_blocks(self, size: int) -> list[slice]:
        """Return the slices of the blocks of a vector."""
        step = self.block or max(size, 1)
        return [slice(at, min(at + step, size)) for at in range(0, size, step)]

    def _choose_scale(self, largest: Array) -> tuple[np.uint16, np.float32]:
        """Return the bfloat16 bits and the value of the scale for a largest magnitude of shape (1,).

        All multiples of the scale stay finite.
        """
        bits = bfloat16.round_up(largest / np.float32(self.top))
        if float(bfloat16.from_bfloat16(bits)[0]) * self.top > float(np.finfo(np.float32).max):
            bits = bits - np.uint16(1)
        return bits[0], bfloat16.from_bfloat16(bits)[0]

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append the scales of all blocks, then the symbols of all vectors in one stream."""
        scales, symbols = [], []
        for number, value in enumerate(values):
            chance = uniform(seed, f"int/{number}", value.size) if self.rounding == "stochastic" else None
            for block in self._slice_blocks(value.size):
                part = value[block]
                bits, scale = self._choose_scale(np.abs(part).max(keepdims=True))
                scales.append(bits)
                ratio = part / scale if scale > 0 else np.zeros_like(part)
                multiples = np.rint(ratio) if chance is None else np.floor(ratio + chance[block])
                symbols.append(np.clip(multiples, -self.top, self.top).astype(np.int32) + self.top)
        writer.raw(np.array(scales, dtype="<u2").tobytes())
        flat = np.concatenate(symbols) if symbols else np.zeros(0, np.int32)
        write_symbols(writer, flat, 2 * self.top + 1)

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read multiples of the scales; a forged scale may overflow to infinity."""
        sizes = [s.count for s in supports]
        blocks = [self._slice_blocks(size) for size in sizes]
        scales = iter(bfloat16.decode_scales(reader.raw(2 * sum(map(len, blocks)))))
        symbols = read_symbols(reader, sum(sizes), 2 * self.top + 1)
        vectors = []
        at = 0
        for size, parts in zip(sizes, blocks, strict=True):
            multiples = (symbols[at : at + size] - self.top).astype(np.float32)
            with np.errstate(over="ignore"):  # a scale that overflows is found by the caller's finite check
                for part in parts:
                    multiples[part] *= next(scales)
            vectors.append(multiples)
            at += size
        return vectors
