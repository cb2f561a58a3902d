"""Selection, then quantization: one kind of code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints, Quantizer, Selector, Support, saturate
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True)
class SelectThenQuantize:
    """Sends what ``select`` chooses, or everything, as ``quantize`` writes it; the rest decodes to 0."""

    name: ClassVar[str] = "chain"
    uses_previous_update: ClassVar[bool] = False
    select: Selector | None
    quantize: Quantizer

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Places, then values."""
        writer, flat = Writer(), [v.reshape(-1) for v in values]
        places = [Support(m.shape) for m in members]
        if self.select is not None:
            chosen = self.select.select(flat, [m.shape for m in members], hints.seed)
            places = [Support(m.shape, p) for m, p in zip(members, chosen, strict=True)]
            self.select.write(writer, places, hints.seed)
            gain = np.float32(self.select.gain)
            flat = [v[p] for v, p in zip(flat, chosen, strict=True)]
            if gain != 1:
                with np.errstate(over="ignore"):
                    flat = [saturate(v * gain) for v in flat]
        self.quantize.write(writer, flat, places, hints.seed)
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Zeros but at the places."""
        shapes = [m.shape for m in members]
        if self.select is None:
            dense = self.quantize.read(reader, [Support(s) for s in shapes])
            return [v.reshape(s) for v, s in zip(dense, shapes, strict=True)]
        places = self.select.read(reader, shapes)
        out = []
        for place, values in zip(places, self.quantize.read(reader, places), strict=True):
            full = np.zeros(place.numel, np.float32)
            full[slice(None) if place.positions is None else place.positions] = values
            out.append(full.reshape(place.shape))
        return out
