"""Chains a selector and a quantizer into one tensor code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints, Quantizer, Selector, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.numerics.scaling import saturate
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True)
class SelectThenQuantize:
    """Sends the entries that ``select`` chooses, as ``quantize`` writes them; all others decode to 0.

    A section has the selector's bytes first, then the quantizer's.

    Args:
        select: chooses entries; None sends all of them.
        quantize: writes the values of the entries that are sent.
    """

    name: ClassVar[str] = "chain"
    uses_previous_update: ClassVar[bool] = False
    select: Selector | None
    quantize: Quantizer

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Encode the positions, where there is a selector, and then the values."""
        writer = Writer()
        flat = [v.reshape(-1) for v in values]
        supports = [Support(m.shape) for m in members]
        if self.select is not None:
            chosen = self.select.select(flat, [m.shape for m in members], hints.seed)
            supports = [Support(m.shape, p) for m, p in zip(members, chosen, strict=True)]
            self.select.write(writer, supports, hints.seed)
            gain = np.float32(self.select.gain)
            flat = [v[p] for v, p in zip(flat, chosen, strict=True)]
            if gain != 1:
                with np.errstate(over="ignore"):
                    flat = [saturate(v * gain) for v in flat]
        self.quantize.write(writer, flat, supports, hints.seed)
        return writer.getvalue()

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode tensors that are 0 everywhere but at the positions that were sent."""
        shapes = [m.shape for m in members]
        if self.select is None:
            dense = self.quantize.read(reader, [Support(s) for s in shapes])
            return [v.reshape(s) for v, s in zip(dense, shapes, strict=True)]
        supports = self.select.read(reader, shapes)
        tensors = []
        for support, values in zip(supports, self.quantize.read(reader, supports), strict=True):
            tensor = np.zeros(support.numel, np.float32)
            tensor[slice(None) if support.positions is None else support.positions] = values
            tensors.append(tensor.reshape(support.shape))
        return tensors
