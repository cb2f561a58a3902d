"""Quantizes to two bits: four bins, each of which decodes to the mean of its members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.symbols import read_symbols, write_symbols
from fedcompress.errors import PayloadError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array

BINS = 4
RANGE = 6.0  # width of all bins together, in standard deviations


@dataclass(frozen=True, kw_only=True)
class TwoBit:
    """Sorts values into four equal bins over six standard deviations around the mean of their tensor.

    A bin decodes to the mean of its members; the outer bins also take what lies beyond. This is the 2-bit code of
    SparseLoCo (arXiv:2508.15706) as its production code has it, but the tables of means, float32 there, are bfloat16
    here. Each tensor has its own bins.

    >>> from fedcompress.codecs import preview
    >>> print(preview("twobit", [0.9, -0.2, -1.1, 0.1]))
    12 bytes, relative squared error 0.35: [0.5, -0.648, -0.648, 0.5]
    """

    name: ClassVar[str] = "twobit"

    def write(self, writer: Writer, values: Sequence[Array], supports: Sequence[Support], seed: int = 0) -> None:
        """Append four centres for each nonempty vector, then the bins of all entries."""
        symbols = [np.zeros(0, np.int32)]
        for value in values:
            if not value.size:
                continue
            exact = value.astype(np.float64)
            width = RANGE * exact.std() / BINS
            offset = (exact - exact.mean()) / width if width > 0 else np.zeros(value.size)
            bins = np.clip(np.floor(offset + BINS / 2), 0, BINS - 1).astype(np.int32)
            count = np.bincount(bins, minlength=BINS)
            centres = np.bincount(bins, exact, BINS) / np.maximum(count, 1)
            writer.raw(bfloat16.to_bfloat16(centres.astype(np.float32)).astype("<u2").tobytes())
            symbols.append(bins)
        write_symbols(writer, np.concatenate(symbols), BINS)

    def read(self, reader: Reader, supports: Sequence[Support]) -> list[Array]:
        """Read the centre of each entry's bin."""
        filled = sum(s.count > 0 for s in supports)
        bits = np.frombuffer(reader.raw(2 * BINS * filled), "<u2").astype(np.uint16)
        centres = bfloat16.from_bfloat16(bits).reshape(-1, BINS)
        if not np.isfinite(centres).all():
            raise PayloadError("section: centre: must be finite")
        symbols = read_symbols(reader, sum(s.count for s in supports), BINS)
        tables = iter(centres)
        vectors = []
        at = 0
        for support in supports:
            bins = symbols[at : at + support.count]
            at += support.count
            vectors.append(next(tables)[bins] if support.count else np.zeros(0, np.float32))
        return vectors
