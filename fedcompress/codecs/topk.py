"""Selection by magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Mask
from fedcompress.errors import ConfigError
from fedcompress.types import Array

SCOPES = ("tensor", "global")


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the ``ceil(density * n)`` entries of largest magnitude, exactly.

    ``scope="tensor"`` counts in each tensor (so that a tiny one keeps at least an entry),
    ``"global"`` over all tensors of the clause, as ComPEFT (arXiv:2311.13171, section 2.1)
    does. Equal magnitudes are kept in the order of their index, so that the choice does
    not depend on a sorting algorithm; the released ComPEFT code keeps all of them.
    """

    name: ClassVar[str] = "topk"
    density: float
    scope: str = "tensor"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError("codec.topk.density", self.density, "must be above 0 and at most 1")
        if self.scope not in SCOPES:
            raise ConfigError("codec.topk.scope", self.scope, f"one of {list(SCOPES)}")

    def select(self, values: Sequence[Array]) -> list[Mask]:
        """Masks of flat float32 vectors."""
        if self.scope == "tensor":
            return [largest(np.abs(v), math.ceil(self.density * v.size)) for v in values]
        flat = np.concatenate([np.abs(v) for v in values]) if values else np.zeros(0, np.float32)
        mask = largest(flat, math.ceil(self.density * flat.size))
        ends = np.cumsum([v.size for v in values])[:-1]
        return list(np.split(mask, ends)) if values else []


def largest(magnitudes: Array, count: int) -> Mask:
    """Mask of exactly ``min(count, n)`` largest entries; on ties the lower index wins."""
    if count >= magnitudes.size:
        return np.ones(magnitudes.size, np.bool_)
    if count <= 0:
        return np.zeros(magnitudes.size, np.bool_)
    threshold = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    mask: Mask = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    mask[ties[: count - int(mask.sum())]] = True
    return mask
