"""Weighted mean of updates (FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Unit
from fedcompress.types import Array, Tensors

Sums = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """sum_i w_i * delta_i, accumulated in float64 in the order of the folds.

    On LoRA factors this is FedIT: mean(B) mean(A), which is not mean(BA).
    """

    name: ClassVar[str] = "mean"

    def init(self, unit: Unit, base: Mapping[str, Array]) -> Sums:
        """Zeros."""
        return {t.name: np.zeros(t.shape, np.float64) for t in unit.tensors}

    def fold(self, state: Sums, weight: float, delta: Mapping[str, Array]) -> Sums:
        """Add ``weight * delta``."""
        return {name: value + weight * delta[name].astype(np.float64) for name, value in state.items()}

    def finish(self, state: Sums) -> Tensors:
        """Round to float32."""
        return {name: value.astype(np.float32) for name, value in state.items()}
