"""Two bits: four bins, each decoded to the mean of its members."""

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

BINS, RANGE = 4, 6.0


@dataclass(frozen=True, kw_only=True)
class TwoBit:
    """Four equal bins over six standard deviations around the mean; a bin becomes its members' mean.

    The 2-bit code of SparseLoCo (arXiv:2508.15706) as its production code has it; its
    tables of float32 are bfloat16 here. Each tensor has its own bins.
    """

    name: ClassVar[str] = "twobit"

    def write(self, writer: Writer, values: Sequence[Array], places: Sequence[Support], seed: int = 0) -> None:
        """Four centres for each nonempty vector, then the bins of all entries."""
        symbols = [np.zeros(0, np.int32)]
        for value in values:
            if not value.size:
                continue
            exact = value.astype(np.float64)
            width = RANGE * exact.std() / BINS
            place = (exact - exact.mean()) / width if width > 0 else np.zeros(value.size)
            bins = np.clip(np.floor(place + BINS / 2), 0, BINS - 1).astype(np.int32)
            count = np.bincount(bins, minlength=BINS)
            centres = np.bincount(bins, exact, BINS) / np.maximum(count, 1)
            writer.raw(bfloat16.to_bfloat16(centres.astype(np.float32)).astype("<u2").tobytes())
            symbols.append(bins)
        write_symbols(writer, np.concatenate(symbols), BINS)

    def read(self, reader: Reader, places: Sequence[Support]) -> list[Array]:
        """Centres."""
        filled = sum(p.count > 0 for p in places)
        bits = np.frombuffer(reader.raw(2 * BINS * filled), "<u2").astype(np.uint16)
        centres = bfloat16.from_bfloat16(bits).reshape(-1, BINS)
        if not np.isfinite(centres).all():
            raise PayloadError("section: centre: must be finite")
        symbols, at, used, out = read_symbols(reader, sum(p.count for p in places), BINS), 0, 0, []
        for place in places:
            out.append(centres[used][symbols[at : at + place.count]] if place.count else np.zeros(0, np.float32))
            at, used = at + place.count, used + (place.count > 0)
        return out
