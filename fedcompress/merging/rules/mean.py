"""Weighted mean of updates (FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Block, Floats
from fedcompress.merging.updates import Updates


def weighted_sum(block: Block) -> Floats:
    """``sum_i w_i * values_i``, accumulated in float64 in the order of sites."""
    total = np.zeros(block.values.shape[1])
    scaled = np.empty_like(total)
    for weight, values in zip(block.weights, block.values, strict=True):
        np.multiply(values, weight, out=scaled)
        total += scaled
    return total


@dataclass(frozen=True, kw_only=True)
class Mean:
    """sum_i w_i * delta_i, accumulated in float64 in the order of sites.

    On LoRA factors this is FedIT: mean(B) mean(A), which is not mean(BA).
    """

    name: ClassVar[str] = "mean"

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The weighted mean."""
        return weighted_sum(block)
