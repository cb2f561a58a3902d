"""Uniform symmetric quantization to a few bits, symbols entropy-coded."""

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
    """Nearest of ``2^bits - 1`` multiples of a scale; zero is one of them.

    ``block`` entries share a bfloat16 scale, the smallest that reaches the block's largest
    magnitude; 0 is one block a tensor. Error at most half a scale. ``rounding="stochastic"``
    rounds up or down by seeded chance, so that the expected value is the entry (Gupta et al.
    2015, arXiv:1502.02551, section 3); then the error is below a scale.
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
        """Largest multiple of the scale."""
        return int((1 << (self.bits - 1)) - 1)

    def _blocks(self, size: int) -> list[slice]:
        step = self.block or max(size, 1)
        return [slice(at, min(at + step, size)) for at in range(0, size, step)]

    def _scale(self, largest: Array) -> tuple[np.uint16, np.float32]:
        """Bits and value of the scale for a largest magnitude of shape (1,); its multiples stay finite."""
        bits = bfloat16.round_up(largest / np.float32(self.top))
        if float(bfloat16.from_bfloat16(bits)[0]) * self.top > float(np.finfo(np.float32).max):
            bits = bits - np.uint16(1)
        return bits[0], bfloat16.from_bfloat16(bits)[0]

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """Scales of all blocks, then the symbols of all vectors in one stream."""
        scales, symbols = [], []
        for number, value in enumerate(values):
            chance = uniform(seed, f"int/{number}", value.size) if self.rounding == "stochastic" else None
            for block in self._blocks(value.size):
                part = value[block]
                bits, scale = self._scale(np.abs(part).max(keepdims=True))
                scales.append(bits)
                ratio = part / scale if scale > 0 else np.zeros_like(part)
                near = np.rint(ratio) if chance is None else np.floor(ratio + chance[block])
                symbols.append(np.clip(near, -self.top, self.top).astype(np.int32) + self.top)
        writer.raw(np.array(scales, dtype="<u2").tobytes())
        flat = np.concatenate(symbols) if symbols else np.zeros(0, np.int32)
        write_symbols(writer, flat, 2 * self.top + 1)

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """Multiples of the scales."""
        sizes = [p.count for p in places]
        blocks = [self._blocks(size) for size in sizes]
        scales = iter(bfloat16.scales_from(reader.raw(2 * sum(map(len, blocks)))))
        symbols = read_symbols(reader, sum(sizes), 2 * self.top + 1)
        out, at = [], 0
        for size, parts in zip(sizes, blocks, strict=True):
            multiples = (symbols[at : at + size] - self.top).astype(np.float32)
            with np.errstate(over="ignore"):  # a scale that overflows is found by the caller's finite check
                for part in parts:
                    multiples[part] *= next(scales)
            out.append(multiples)
            at += size
        return out
