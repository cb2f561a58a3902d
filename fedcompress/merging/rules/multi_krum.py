"""Multi-Krum: the mean of the updates that lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.krum import best_first, check_malicious
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class MultiKrum:
    """Weighted mean of the ``kept`` updates with the least scores; ``kept=0`` keeps all but ``malicious``.

    Blanchard et al. 2017 (arXiv:1703.02757, section 6), where ``n - f`` are kept in the experiments.

    Raises:
        ConfigError: a number is below 0; in ``collect_statistics``, if there are too few sites for
            ``malicious`` or ``kept``.
    """

    name: ClassVar[str] = "multi-krum"
    malicious: int = 0
    kept: int = 0

    def __post_init__(self) -> None:
        check_malicious(self.name, self.malicious)
        if self.kept < 0:
            raise ConfigError("rule.multi-krum.kept", self.kept, "must be at least 0")

    def collect_statistics(self, updates: Updates, weights: Floats) -> Floats:
        """Weights of the mean, shape (sites,); they add up to 1."""
        order = best_first(self.name, updates, weights, self.malicious)
        most = len(order) - self.malicious
        if self.kept > most:
            rule = (
                f"must be at most {most}: multi-krum has {len(order)} sites with a weight, {self.malicious} malicious"
            )
            raise ConfigError("rule.multi-krum.kept", self.kept, rule)
        chosen = order[: self.kept or most]
        share: Floats = np.zeros(len(weights))
        share[chosen] = weights[chosen]
        share /= share.sum()
        return share

    def merge_block(self, block: Block, state: Floats) -> Floats:
        """The mean of the kept sites, shape (n,), float64."""
        return weighted_sum(replace(block, weights=state))
