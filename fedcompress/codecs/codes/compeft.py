"""Encodes as ComPEFT: the signs of the largest entries of all tensors, with one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import NO_HINTS, EncoderHints, Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.positions import read_positions, write_positions
from fedcompress.codecs.entropy.signs import read_signs, write_signs
from fedcompress.codecs.selectors.topk import count_kept, find_largest
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array, TensorSpec


@dataclass(frozen=True, kw_only=True)
class ComPEFT:
    """Sends the signs of the ``density`` largest entries of all tensors together; each decodes to ``alpha * std``.

    Yadav et al. 2023 (arXiv:2311.13171, section 2.1). ``std`` is the unbiased standard deviation of the whole update
    before trimming, as in the released code. That code keeps one entry more than asked for, and all ties, and writes
    no file. The authors search ``alpha`` on validation data, from 0.5 to 10.

    Args:
        density: the share of entries that is sent, above 0 and at most 1.
        alpha: the scale in standard deviations, up to 1000; 0 takes the scale of least squared error instead.

    >>> from fedcompress.codecs import preview
    >>> print(preview("compeft(density=0.25)", [3, -1, 0, 2, 0, 0.5, -4, 1]))
    9 bytes, relative squared error 0.34: [2.11, 0, 0, 0, 0, 0, -2.11, 0]
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
        """Encode the scale in bfloat16, the positions and the signs."""
        flat = [v.reshape(-1) for v in values]
        chosen = find_largest(flat, count_kept(self.density, sum(v.size for v in flat)))
        supports = [Support(m.shape, p) for m, p in zip(members, chosen, strict=True)]
        largest = [v[p] for v, p in zip(flat, chosen, strict=True)]
        writer = Writer()
        scale = np.array([self._compute_scale(flat, largest)], np.float32)
        writer.raw(bfloat16.to_bfloat16(scale).astype("<u2").tobytes())
        write_positions(writer, supports)
        write_signs(writer, [np.signbit(v) for v in largest], supports)
        return writer.getvalue()

    def _compute_scale(self, flat: Sequence[Array], largest: Sequence[Array]) -> float:
        """Return the scale, from all entries and from those that are sent."""
        count = sum(v.size for v in flat)
        if not self.alpha:
            return sum(float(np.abs(v).sum(dtype=np.float64)) for v in largest) / max(sum(v.size for v in largest), 1)
        if count < 2:
            return 0.0
        mean = sum(float(v.sum(dtype=np.float64)) for v in flat) / count
        squares = sum(float(np.square(v.astype(np.float64) - mean).sum()) for v in flat)
        return self.alpha * float(np.sqrt(squares / (count - 1)))

    def decode(self, members: Sequence[TensorSpec], reader: Reader) -> list[Array]:
        """Decode plus or minus the scale at the positions that were sent, and 0 elsewhere."""
        scale = bfloat16.decode_scales(reader.raw(2))[0]
        supports = read_positions(reader, [m.shape for m in members])
        tensors = []
        for support, negative in zip(supports, read_signs(reader, supports), strict=True):
            tensor = np.zeros(support.numel, np.float32)
            tensor[support.positions] = np.array([scale, -scale], np.float32)[negative.view(np.uint8)]
            tensors.append(tensor.reshape(support.shape))
        return tensors
