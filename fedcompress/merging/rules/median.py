"""Coordinate-wise weighted median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Block, Floats
from fedcompress.merging.updates import Updates
from fedcompress.merging.weighted_order import HALF, ranked


@dataclass(frozen=True, kw_only=True)
class Median:
    """The value with half of the weight on either side; the mean of the two nearest where it lies between.

    Yin et al. 2018 (arXiv:1803.01498, definition 1), there with equal weights. With less than half of the
    weight at malicious sites every entry lies within the range of the honest values of that entry.
    Weights by examples are claims of the sites: weigh uniformly where they may lie.
    """

    name: ClassVar[str] = "median"

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The weighted median of each column, shape (n,), float64."""
        values, share = ranked(block.values, block.weights)
        if share.ndim == 1:
            below = np.cumsum(share)
            low, high = int(np.argmax(below >= 0.5 - HALF)), int(np.argmax(below > 0.5 + HALF))
            middle: Floats = (values[low].astype(np.float64) + values[high]) / 2
            return middle
        below = np.cumsum(share, axis=0)
        columns = np.arange(values.shape[1])
        low_row = values[np.argmax(below >= 0.5 - HALF, axis=0), columns]
        high_row = values[np.argmax(below > 0.5 + HALF, axis=0), columns]
        middle = (low_row.astype(np.float64) + high_row) / 2
        return middle
