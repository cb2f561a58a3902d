"""ComPEFT: global top-k signs with one scale, a multiple of the standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.positions import read_places, write_places
from fedcompress.codecs.entropy.signs import read_signs, write_signs
from fedcompress.codecs.selectors.topk import kept_of, largest
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True, kw_only=True)
class ComPEFT:
    """Signs of the ``density`` largest entries of all tensors together, times ``alpha * std``.

    Yadav et al. 2023 (arXiv:2311.13171, section 2.1). ``std`` is that of the whole update before
    trimming, unbiased, as in the released code; that code keeps one entry more than asked for,
    and all ties, and writes no file. ``alpha`` is theirs to search on validation data (0.5 to
    10); ``alpha=0`` takes the scale of least squared error instead.
    """

    name: ClassVar[str] = "compeft"
    uses_previous_update: ClassVar[bool] = False
    density: float = 0.2
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError("codec.compeft.density", self.density, "must be above 0 and at most 1")
        if not 0 <= self.alpha <= 1000:
            raise ConfigError("codec.compeft.alpha", self.alpha, "must be from 0 (least squares) to 1000")

    def encode(self, members: Sequence[TensorSpec], values: Sequence[Array], hints: EncoderHints = NO_HINTS) -> bytes:
        """Scale, places, signs."""
        flat = [v.reshape(-1) for v in values]
        chosen = largest(flat, kept_of(self.density, sum(v.size for v in flat)))
        places = [Support(m.shape, p) for m, p in zip(members, chosen, strict=True)]
        kept = [v[p] for v, p in zip(flat, chosen, strict=True)]
        writer = Writer()
        writer.raw(bfloat16.to_bfloat16(np.array([self._scale(flat, kept)], np.float32)).astype("<u2").tobytes())
        write_places(writer, places)
        write_signs(writer, [np.signbit(v) for v in kept], places)
        return writer.getvalue()

    def _scale(self, flat: Sequence[Array], kept: Sequence[Array]) -> float:
        count = sum(v.size for v in flat)
        if not self.alpha:
            return sum(float(np.abs(v).sum(dtype=np.float64)) for v in kept) / max(sum(v.size for v in kept), 1)
        if count < 2:
            return 0.0
        mean = sum(float(v.sum(dtype=np.float64)) for v in flat) / count
        squares = sum(float(np.square(v.astype(np.float64) - mean).sum()) for v in flat)
        return self.alpha * float(np.sqrt(squares / (count - 1)))

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Plus or minus the scale at the places."""
        scale = bfloat16.scales_from(reader.raw(2))[0]
        places = read_places(reader, [m.shape for m in members])
        out = []
        for place, negative in zip(places, read_signs(reader, places), strict=True):
            full = np.zeros(place.numel, np.float32)
            full[place.positions] = np.array([scale, -scale], np.float32)[negative.view(np.uint8)]
            out.append(full.reshape(place.shape))
        return out
