"""The geometric median treats whole updates as points, and is hardly moved by a few that lie far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import SiteShares, compute_gram, compute_squared_distances
from fedcompress.merging.updates import Updates

_SMALLEST_FLOOR = 1e-150  # of a distance: keeps divisions finite where all updates are zero


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Elementwise[SiteShares]):
    """The rule finds the point with the least weighted sum of distances to the updates, by smoothed Weiszfeld steps.

    RFA, Pillutla et al. 2022 (arXiv:1912.13445, algorithm 2). All iterates are convex combinations of the updates, so
    only their Gram matrix is needed: one pass over the data, then ``steps`` products with a (sites, sites) matrix.
    The first iterate weighs each site by its weight over the median of its distances to the others, because from the
    mean every step takes only a constant factor of a huge update away. With a share k < 1/2 of the weight at
    malicious sites, and the honest updates within r of some point, the result is within ``2 (1 - k) / (1 - 2 k) r``
    of that point, by the triangle inequality.

    Args:
        nu: smallest distance that counts, as a share of the median norm, from 1e-7 to 1; the paper's is absolute.
        steps: largest number of Weiszfeld steps; they end earlier once nothing changes.

    Raises:
        ConfigError: ``nu`` is not from 1e-7 to 1, or ``steps`` is below 1.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("geometric-median"), [[1, 1], [1.25, 1], [100, -100]]).round(2))
        [1.25 1.  ]
    """

    name: ClassVar[str] = "geometric-median"
    nu: float = 1e-6
    steps: int = 500

    def __post_init__(self) -> None:
        if not 1e-7 <= self.nu <= 1:
            raise ConfigError("rule.geometric-median.nu", self.nu, "must be from 1e-7 to 1")
        if self.steps < 1:
            raise ConfigError("rule.geometric-median.steps", self.steps, "must be at least 1")

    def collect_statistics(self, updates: Updates, weights: Floats) -> SiteShares:
        """Compute the weights of the convex combination that is the geometric median; they add up to 1."""
        products = compute_gram(updates)
        squares = np.diagonal(products)
        floor = max(self.nu * float(np.median(np.sqrt(squares))), _SMALLEST_FLOOR)
        between_sites = np.sqrt(compute_squared_distances(products))
        shares = _weigh_by_distance(weights, np.maximum(np.median(between_sites, axis=0), floor))
        for _ in range(self.steps):
            image = products @ shares
            distances = np.sqrt(np.maximum(shares @ image - 2 * image + squares, 0))
            last = shares
            shares = _weigh_by_distance(weights, np.maximum(distances, floor))
            if np.allclose(shares, last, rtol=1e-11, atol=0):
                break
        return SiteShares(shares)

    def merge_block(self, block: Block, state: SiteShares) -> Floats:
        """Return the convex combination of the updates, float64, shape (n,)."""
        return weighted_sum(block.values, state.shares)


def _weigh_by_distance(weights: Floats, distances: Floats) -> Floats:
    """Return ``weights / distances``, scaled to add up to 1."""
    shares: Floats = weights * (distances.min() / distances)
    shares /= shares.sum()
    return shares
