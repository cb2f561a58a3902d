"""Bulyan selects updates by Krum, one after another, and averages what lies near their median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.krum import check_malicious, order_by_score
from fedcompress.merging.statistics import compute_gram
from fedcompress.merging.updates import Updates
from fedcompress.merging.weighted_order import sort_columns


@dataclass(frozen=True)
class SelectedSites:
    """The state of ``bulyan``: which sites are merged."""

    sites: tuple[int, ...]  # numbers of the sites, from 0


@dataclass(frozen=True, kw_only=True)
class Bulyan(Elementwise[SelectedSites]):
    """The rule selects ``n - 2 f`` updates by Krum, then averages the ``n - 4 f`` values next to each entry's median.

    El Mhamdi, Guerraoui and Rouault 2018 (arXiv:1802.07927, section 4), f being the number of malicious sites.
    Each selection is by Krum among those that are left. Krum alone lets an attacker move one entry far in a space of
    many dimensions; here each entry is as near to a median of mostly honest values as honest ones are. Weights only
    break ties, as of ``krum``. Where values on both sides of the median are equally near, two means are averaged.

    Args:
        malicious: number f of malicious sites to withstand, with ``4 f + 3`` sites or more; with 0 any number will
            do, and the rule is their mean.

    Raises:
        ConfigError: ``malicious`` is below 0; in ``collect_statistics``, if there are too few sites for it.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("bulyan(malicious=1)"), [[1], [2], [3], [4], [5], [6], [99]]))
        [3.]
    """

    name: ClassVar[str] = "bulyan"
    malicious: int = 0

    def __post_init__(self) -> None:
        check_malicious(self.name, self.malicious)

    @property
    def min_updates(self) -> int:
        """Return ``4 * malicious + 3``, or 1 if no site is malicious."""
        return 4 * self.malicious + 3 if self.malicious else 1

    def collect_statistics(self, updates: Updates, weights: Floats) -> SelectedSites:
        """Select the sites."""
        left = np.flatnonzero(weights > 0)
        count = len(left)
        if count < self.min_updates:
            most = max((count - 3) // 4, 0)
            rule = (
                f"must be at most {most} with {count} sites that have a weight: bulyan needs 4 * malicious + 3 = "
                f"{self.min_updates} sites (El Mhamdi et al. 2018)"
            )
            raise ConfigError("rule.bulyan.malicious", self.malicious, rule)
        products = compute_gram(updates)
        selected: list[int] = []
        for _ in range(count - 2 * self.malicious):
            best = int(order_by_score(products[np.ix_(left, left)], weights[left], self.malicious)[0])
            selected.append(int(left[best]))
            left = np.delete(left, best)
        return SelectedSites(tuple(sorted(selected)))

    def merge_block(self, block: Block, state: SelectedSites) -> Floats:
        """Return the mean of the values next to the median of the selected sites, float64, shape (n,)."""
        values = sort_columns(block.values[list(state.sites)])
        count = len(values)
        kept = count - 2 * self.malicious
        middle = (values[(count - 1) // 2].astype(np.float64) + values[count // 2]) / 2
        ends = range(count - kept + 1)  # the kept values are neighbours: they begin at one of these
        radii = np.stack([np.maximum(middle - values[i], values[i + kept - 1] - middle) for i in ends])
        first = np.argmin(radii, axis=0)
        last = len(ends) - 1 - np.argmin(radii[::-1], axis=0)
        total = np.zeros(values.shape[1])
        for number, row in enumerate(values):
            inside = (first <= number).astype(np.float64) * (number < first + kept)
            inside += (last <= number).astype(np.float64) * (number < last + kept)
            total += inside / 2 * row
        return total / kept
