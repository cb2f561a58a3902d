"""Krum picks the one update that lies closest to its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.statistics import compute_gram, compute_squared_distances
from fedcompress.merging.updates import Updates
from fedcompress.types import Array


@dataclass(frozen=True)
class ChosenSite:
    """The state of ``krum``: which site's update is the result."""

    site: int  # number of the site, from 0


def check_malicious(rule: str, malicious: int) -> None:
    """Raise ``ConfigError`` unless a number of malicious sites is at least 0; ``rule`` is the rule's name."""
    if malicious < 0:
        raise ConfigError(f"rule.{rule}.malicious", malicious, "must be at least 0")


def count_needed_sites(malicious: int) -> int:
    """Return how many sites Krum needs against a number of malicious ones: ``2 * malicious + 3``, or 1 against none."""
    return 2 * malicious + 3 if malicious else 1


def rank_sites(rule: str, updates: Updates, weights: Floats, malicious: int) -> NDArray[np.int64]:
    """Rank the sites that have a weight by their Krum score.

    The score of a site is the sum of its squared distances to the ``n - malicious - 2`` closest others, or to one at
    least. Of equal scores the larger weight comes first, then the smaller norm, so that the order of the sites does
    not matter.

    Args:
        rule: name of the rule, for error messages.
        updates: updates of all sites.
        weights: shape (sites,); a site with weight 0 is left out.
        malicious: number of malicious sites to withstand.

    Returns:
        Numbers of the sites, the one with the least score first.

    Raises:
        ConfigError: ``malicious`` is above 0 and there are fewer than ``2 * malicious + 3`` sites with a weight.
    """
    present = np.flatnonzero(weights > 0)
    count = len(present)
    needed = count_needed_sites(malicious)
    if count < needed:
        most = max((count - 3) // 2, 0)
        rule_text = (
            f"must be at most {most} with {count} sites that have a weight: {rule} needs 2 * malicious + 3 = {needed} "
            "sites (Blanchard et al. 2017)"
        )
        raise ConfigError(f"rule.{rule}.malicious", malicious, rule_text)
    products = compute_gram(updates)[np.ix_(present, present)]
    return present[order_by_score(products, weights[present], malicious)]


def order_by_score(products: Floats, weights: Floats, malicious: int) -> NDArray[np.int64]:
    """Order sites by their Krum score, as ``rank_sites`` does.

    Args:
        products: inner products of their updates, shape (sites, sites).
        weights: shape (sites,).
        malicious: number of malicious sites to withstand.

    Returns:
        Positions in ``products``, shape (sites,), the one with the least score first.
    """
    distances = np.sort(compute_squared_distances(products), axis=1)
    scores = distances[:, 1 : 1 + max(len(weights) - malicious - 2, 1)].sum(axis=1)
    return np.lexsort((np.diagonal(products), -weights, scores))


@dataclass(frozen=True, kw_only=True)
class Krum(Elementwise[ChosenSite]):
    """The rule picks the update with the least sum of squared distances to its ``n - malicious - 2`` closest others.

    Blanchard et al. 2017 (arXiv:1703.02757, section 4). Weights only break ties. With ``n >= 2 f + 3`` sites, ``f`` of
    them malicious, the chosen update is an honest one, or as near to one as ``sqrt((n - f - 2) / (n - 2 f - 1))``
    times the largest distance between two honest updates.

    Args:
        malicious: number f of malicious sites to withstand; with 0 any number of sites will do.

    Raises:
        ConfigError: ``malicious`` is below 0; in ``collect_statistics``, if there are too few sites for it.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("krum"), [[1, 1], [1.25, 1], [1.75, 1], [100, -100]]))
        [1.25 1.  ]
    """

    name: ClassVar[str] = "krum"
    malicious: int = 0

    def __post_init__(self) -> None:
        check_malicious(self.name, self.malicious)

    @property
    def min_updates(self) -> int:
        """Return ``2 * malicious + 3``, or 1 if no site is malicious."""
        return count_needed_sites(self.malicious)

    def collect_statistics(self, updates: Updates, weights: Floats) -> ChosenSite:
        """Choose the site with the least score."""
        return ChosenSite(int(rank_sites(self.name, updates, weights, self.malicious)[0]))

    def merge_block(self, block: Block, state: ChosenSite) -> Array:
        """Return the entries of the chosen site, float32, shape (n,)."""
        chosen: Array = block.values[state.site]
        return chosen
