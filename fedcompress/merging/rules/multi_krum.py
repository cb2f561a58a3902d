"""Multi-Krum takes the mean of the updates that lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.krum import check_malicious, count_needed_sites, rank_sites
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import SiteShares
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Elementwise[SiteShares]):
    """The rule is the weighted mean of the ``kept`` updates that have the least scores of ``krum``.

    Blanchard et al. 2017 (arXiv:1703.02757, section 6), where ``n - f`` updates are kept in the experiments.

    Args:
        malicious: number f of malicious sites to withstand, as of ``krum``.
        kept: number of updates in the mean; 0 is all but ``malicious`` of them.

    Raises:
        ConfigError: a number is below 0; in ``collect_statistics``, if there are too few sites for ``malicious`` or
            for ``kept``.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("multi-krum(kept=2)"), [[1, 1], [1.5, 1], [100, -100]]))
        [1.25 1.  ]
    """

    name: ClassVar[str] = "multi-krum"
    malicious: int = 0
    kept: int = 0

    def __post_init__(self) -> None:
        check_malicious(self.name, self.malicious)
        if self.kept < 0:
            raise ConfigError("rule.multi-krum.kept", self.kept, "must be at least 0")

    @property
    def min_updates(self) -> int:
        """Return ``2 * malicious + 3``, or 1 if no site is malicious."""
        return count_needed_sites(self.malicious)

    def collect_statistics(self, updates: Updates, weights: Floats) -> SiteShares:
        """Compute the weights of the mean: 0 for sites that are dropped; the others add up to 1."""
        order = rank_sites(self.name, updates, weights, self.malicious)
        most = len(order) - self.malicious
        if self.kept > most:
            rule = (
                f"must be at most {most}: multi-krum has {len(order)} sites with a weight, {self.malicious} malicious"
            )
            raise ConfigError("rule.multi-krum.kept", self.kept, rule)
        chosen = order[: self.kept or most]
        shares: Floats = np.zeros(len(weights))
        shares[chosen] = weights[chosen]
        shares /= shares.sum()
        return SiteShares(shares)

    def merge_block(self, block: Block, state: SiteShares) -> Floats:
        """Return the mean of the sites that are kept, float64, shape (n,)."""
        return weighted_sum(block.values, state.shares)
