"""The coordinate-wise trimmed mean leaves out the largest and the smallest values of each entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.weighted_order import sort_with_weights

_ROUNDING = 1e-12  # of a share: what rounding leaves of a site that is trimmed as a whole


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Stateless):
    """The rule is the mean of what is left when the share ``beta`` of the weight is dropped at both ends of an entry.

    Yin et al. 2018 (arXiv:1803.01498, definition 2), for equal weights and a whole number of dropped sites. In other
    cases the site at the border counts in part, where a count that is rounded down would drop nobody from a small
    cohort. With at most ``beta`` of the weight at malicious sites, every entry lies within the range of the honest
    values of that entry. Weights by examples are claims of the sites: weigh uniformly where they may lie.

    Args:
        beta: share of the weight that is dropped at either end, from 0 to below 0.5.
        whole: drop ``floor(beta * n)`` whole sites of n at either end, whatever their weights, as Flower and SciPy
            do, and average those that are left by their weights; this drops nobody where beta * n is below 1.

    Raises:
        ConfigError: ``beta`` is not from 0 to below 0.5.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("trimmed-mean(beta=0.25)"), [[1, 5], [2, 6], [3, 7], [100, -9]]))
        [2.5 5.5]
        >>> print(merge_arrays(parse_rule("trimmed-mean(beta=0.3,whole=true)"), [[1], [2], [3], [100]]))
        [2.5]
    """

    name: ClassVar[str] = "trimmed-mean"
    beta: float = 0.1
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 0.5:
            raise ConfigError("rule.trimmed-mean.beta", self.beta, "must be from 0 to below 0.5")

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the trimmed mean of each entry, float64, shape (n,)."""
        present = block.weights > 0
        cohort = block.values[present] if self.whole else block.values
        values, weights = sort_with_weights(cohort, block.weights[present] if self.whole else block.weights)
        total = np.zeros(values.shape[1])
        scaled = np.empty(values.shape[1])
        for row, share in zip(values, self._trim_weights(weights), strict=True):
            total += np.multiply(row, share, out=scaled)
        return total

    def _trim_weights(self, weights: Floats) -> Floats:
        """Return the part of each sorted weight between ``beta`` and ``1 - beta`` of the sum, scaled to add up to 1.

        With ``whole``, the weights of the sites between the ones that are dropped.
        """
        if self.whole:
            count = int(np.floor(round(self.beta * len(weights), 6)))
            shares = weights.copy()
            shares[:count] = 0
            shares[len(weights) - count :] = 0
            kept: Floats = shares / shares.sum(axis=0)
            return kept
        above = np.cumsum(weights, axis=0)
        shares = np.minimum(above, 1 - self.beta) - np.maximum(above - weights, self.beta)
        shares[shares < _ROUNDING] = 0
        shares /= shares.sum(axis=0)
        return shares
