"""Krum: the update that lies closest to its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.statistics import gram, squared_distances
from fedcompress.merging.updates import Updates


def check_malicious(rule: str, malicious: int) -> None:
    """Raise ``ConfigError`` unless a number of sites is one."""
    if malicious < 0:
        raise ConfigError(f"rule.{rule}.malicious", malicious, "must be at least 0")


def best_first(rule: str, updates: Updates, weights: Floats, malicious: int) -> NDArray[np.int64]:
    """Sites with a weight, the one with the least score first.

    The score is the sum of squared distances to the ``n - f - 2`` closest others, to one at least. Of equal scores
    the larger weight comes first, then the smaller norm, so that the order of sites does not matter.

    Raises:
        ConfigError: ``f`` is above 0 and there are fewer than ``2 f + 3`` sites.
    """
    present = np.flatnonzero(weights > 0)
    count, needed = len(present), 2 * malicious + 3
    if malicious and count < needed:
        rule_text = f"must be 0 with {count} sites that have a weight: {rule} needs 2 * malicious + 3 = {needed}"
        raise ConfigError(f"rule.{rule}.malicious", malicious, rule_text)
    products = gram(updates)[np.ix_(present, present)]
    distances = np.sort(squared_distances(products), axis=1)
    scores = distances[:, 1 : 1 + max(count - malicious - 2, 1)].sum(axis=1)
    order = np.lexsort((np.diagonal(products), -weights[present], scores))
    return present[order]


@dataclass(frozen=True, kw_only=True)
class Krum:
    """The update with the least sum of squared distances to its ``n - malicious - 2`` closest others.

    Blanchard et al. 2017 (arXiv:1703.02757, section 4). Weights only break ties. With ``n >= 2 f + 3`` sites,
    ``f`` of them malicious, the chosen update is an honest one, or as near to one as
    ``sqrt((n - f - 2) / (n - 2 f - 1))`` times the largest distance between two honest updates.

    Raises:
        ConfigError: ``malicious`` is below 0; in ``collect_statistics``, if there are too few sites for it.
    """

    name: ClassVar[str] = "krum"
    malicious: int = 0

    def __post_init__(self) -> None:
        check_malicious(self.name, self.malicious)

    def collect_statistics(self, updates: Updates, weights: Floats) -> int:
        """The chosen site."""
        return int(best_first(self.name, updates, weights, self.malicious)[0])

    def merge_block(self, block: Block, state: int) -> NDArray[np.float32]:
        """Its entries, shape (n,), float32."""
        chosen: NDArray[np.float32] = block.values[state]
        return chosen
