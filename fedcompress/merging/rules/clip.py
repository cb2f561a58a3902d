"""Clipping takes the weighted mean of updates that are scaled down to a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import SiteShares, compute_norms
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class Clip(Elementwise[SiteShares]):
    """The rule is ``sum_i w_i delta_i min(1, norm / |delta_i|)``, where norms are of whole updates.

    Sun et al. 2019 (arXiv:1911.07963, norm thresholding). A site with the share w of the weight moves the result by
    no more than ``w * norm`` from where an update of 0 would leave it. The median is taken of the norms of all sites,
    whatever their weights.

    Args:
        norm: the largest Euclidean norm of a whole update; 0 is the median norm of the round's updates.

    Raises:
        ConfigError: ``norm`` is below 0.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("clip(norm=5)"), [[3, 4], [0, 100]]))
        [1.5 4.5]
    """

    name: ClassVar[str] = "clip"
    norm: float = 0.0

    def __post_init__(self) -> None:
        if not self.norm >= 0:
            raise ConfigError("rule.clip.norm", self.norm, "must be at least 0; 0 is the median norm of the cohort")

    def collect_statistics(self, updates: Updates, weights: Floats) -> SiteShares:
        """Compute each site's weight times the factor that clips its update; these need not add up to 1."""
        norms = compute_norms(updates)
        bound = self.norm or float(np.median(norms))
        factors = np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)
        return SiteShares(weights * np.minimum(1, factors))

    def merge_block(self, block: Block, state: SiteShares) -> Floats:
        """Return the weighted mean of the clipped updates, float64, shape (n,)."""
        return weighted_sum(block.values, state.shares)
