"""Coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.updates import Updates
from fedcompress.merging.weighted_order import ranked


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """Mean of what is left when the share ``beta`` of the weight is dropped at both ends, entry by entry.

    Yin et al. 2018 (arXiv:1803.01498, definition 2), for equal weights and a whole number of dropped
    sites. Otherwise the site at the border counts in part, where a count that is rounded down
    would drop nobody from a small cohort. With at most ``beta`` of the weight at malicious sites every
    entry lies within the range of the honest values of that entry. Weights by examples are claims
    of the sites: weigh uniformly where they may lie.

    Raises:
        ConfigError: ``beta`` is not from 0 to below 0.5.
    """

    name: ClassVar[str] = "trimmed-mean"
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 0.5:
            raise ConfigError("rule.trimmed-mean.beta", self.beta, "must be from 0 to below 0.5")

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The trimmed mean of each column, shape (n,), float64."""
        values, share = ranked(block.values, block.weights)
        total, scaled = np.zeros(values.shape[1]), np.empty(values.shape[1])
        for row, kept in zip(values, self._kept(share), strict=True):
            total += np.multiply(row, kept, out=scaled)
        return total

    def _kept(self, share: Floats) -> Floats:
        """The part of each weight between ``beta`` and ``1 - beta`` of the sum, to add up to 1."""
        above = np.cumsum(share, axis=0)
        kept = np.minimum(above, 1 - self.beta) - np.maximum(above - share, self.beta)
        kept[kept < 1e-12] = 0  # what rounding leaves of a whole site must not count
        kept /= kept.sum(axis=0)
        return kept
