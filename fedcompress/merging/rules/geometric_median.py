"""Geometric median of whole updates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import gram, squared_distances
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class GeometricMedian:
    """The point with the least weighted sum of distances to the updates, by smoothed Weiszfeld steps.

    RFA, Pillutla et al. 2022 (arXiv:1912.13445, algorithm 2). All iterates are convex combinations of
    the updates, so that only their Gram matrix is needed: one pass over the data, then ``steps`` products
    of a (sites, sites) matrix. They start at weights over the median distance of each site to the others, because
    from the mean every step takes only a constant factor of a huge update away. With a share k < 1/2 of the weight
    at malicious sites and honest updates within r of some point, the result is within ``2 (1 - k) / (1 - 2 k) r`` of
    that point, by the triangle inequality.

    Args:
        nu: smallest distance that counts, as a share of the median norm; the paper's is absolute.
        steps: at most so many; ends earlier once nothing changes.

    Raises:
        ConfigError: ``nu`` is not from 1e-7 to 1, or ``steps`` is below 1.
    """

    name: ClassVar[str] = "geometric-median"
    nu: float = 1e-6
    steps: int = 500

    def __post_init__(self) -> None:
        if not 1e-7 <= self.nu <= 1:
            raise ConfigError("rule.geometric-median.nu", self.nu, "must be from 1e-7 to 1")
        if self.steps < 1:
            raise ConfigError("rule.geometric-median.steps", self.steps, "must be at least 1")

    def collect_statistics(self, updates: Updates, weights: Floats) -> Floats:
        """Weights of the combination, shape (sites,); they add up to 1."""
        products = gram(updates)
        square = np.diagonal(products)
        floor = max(self.nu * float(np.median(np.sqrt(square))), 1e-150)
        apart = np.sqrt(squared_distances(products))
        share = _over(weights, np.maximum(np.median(apart, axis=0), floor))
        for _ in range(self.steps):
            image = products @ share
            distance = np.sqrt(np.maximum(share @ image - 2 * image + square, 0))
            last, share = share, _over(weights, np.maximum(distance, floor))
            if np.allclose(share, last, rtol=1e-11, atol=0):
                break
        return share

    def merge_block(self, block: Block, state: Floats) -> Floats:
        """The combination, shape (n,), float64."""
        return weighted_sum(replace(block, weights=state))


def _over(weights: Floats, distance: Floats) -> Floats:
    share: Floats = weights * (distance.min() / distance)
    share /= share.sum()
    return share
