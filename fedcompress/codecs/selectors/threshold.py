"""Selects the entries that reach a fixed magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPositions
from fedcompress.errors import ConfigError
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Threshold(CodedPositions):
    """Keeps the entries whose magnitude is at least ``at`` (Strom 2015, section 4).

    With error feedback an entry waits in the residual until it has grown to ``at``.

    Args:
        at: the least magnitude that is sent, above 0.

    >>> from fedcompress.codecs import preview
    >>> print(preview("threshold(at=1)|bf16", [3, -1, 0, 2, 0, 0.5, -4, 1]))
    15 bytes, relative squared error 0.008: [3, -1, 0, 2, 0, 0, -4, 1]
    """

    name: ClassVar[str] = "threshold"
    at: float

    def __post_init__(self) -> None:
        if not self.at > 0:
            raise ConfigError("codec.threshold.at", self.at, "must be above 0")

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Choose the positions that reach the threshold; there may be none."""
        return [np.flatnonzero(np.abs(v) >= np.float32(self.at)) for v in values]
