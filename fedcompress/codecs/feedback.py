"""Error feedback: what a lossy code left out is added to the next update.

Source: Seide et al. 2014; Karimireddy et al. 2019 (arXiv:1901.09847), algorithm 1.
Law: with decay 1, sum(decoded) + residual == sum(delta), up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.types import Array, Tensors, add, subtract


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """``target = delta + decay * residual``; afterwards ``residual = target - decoded``.

    The residual is the caller's, an argument and a result. ``decay=0`` turns feedback off.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ConfigError("feedback.decay", self.decay, "must be from 0 to 1 (0: no feedback)")

    def target(self, delta: Mapping[str, Array], residual: Mapping[str, Array]) -> Tensors:
        """What to encode, float32. Overflow gives infinity, which encoding refuses."""
        decay = np.float32(self.decay)
        with np.errstate(over="ignore"):
            return {name: delta[name] + decay * residual[name] for name in delta}

    def residual(self, target: Mapping[str, Array], decoded: Mapping[str, Array]) -> Tensors:
        """What the code left out of ``target``."""
        return subtract(target, decoded)

    def give_back(self, residual: Mapping[str, Array], decoded: Mapping[str, Array]) -> Tensors:
        """Residual after an update that was sent but never merged."""
        return add(residual, decoded)
