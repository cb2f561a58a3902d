"""Selection by a fixed magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPlaces
from fedcompress.errors import ConfigError
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Threshold(CodedPlaces):
    """Keep the entries whose magnitude is at least ``at`` (Strom 2015, section 4).

    With error feedback an entry waits in the residual until it has grown to ``at``.
    """

    name: ClassVar[str] = "threshold"
    at: float

    def __post_init__(self) -> None:
        if not self.at > 0:
            raise ConfigError("codec.threshold.at", self.at, "must be above 0")

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Positions in flat float32 vectors; there may be none."""
        return [np.flatnonzero(np.abs(v) >= np.float32(self.at)) for v in values]
