"""PCB merging weighs entries by softmax scores, in the form of its paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.score_thresholds import (
    Group,
    list_groups,
    map_blocks,
    mean_by_counts,
    scale_to_unit,
    score_levels,
)
from fedcompress.merging.statistics import TIE, check_density, check_scope
from fedcompress.merging.updates import Updates
from fedcompress.types import Array

_ONE = 2.0**43  # the largest term of a softmax in sums of integers, which do not depend on how blocks are cut


@dataclass(frozen=True)
class Competition:
    """Holds what the scores of one tensor, or of the whole update, are computed from; all float64."""

    low: Floats  # (sites, sites): least product of two sites' entries
    high: Floats  # (sites, sites): largest product of two sites' entries
    pair_sums: Floats  # (sites, sites): sum of exp(Norm(products) - 1)
    own_sums: Floats  # (sites,): sum of exp(n (Norm(squares) - 1))
    level: Floats  # (sites,): least score that counts


@dataclass(frozen=True)
class Competitions:
    """The state of ``pcb-paper``: how the sites compete, by tensor."""

    by_tensor: Mapping[str, Competition]


@dataclass(frozen=True, kw_only=True)
class PcbPaper(Elementwise[Competitions]):
    """The rule is parameter competition balancing by a softmax over the entries of an update.

    Du et al. 2024 (arXiv:2410.02396, section 3). With n sites, the intra-balancing of site i is
    ``Softmax(n Norm(delta_i * delta_i))``, its inter-balancing is ``sum_j Softmax(Norm(delta_i * delta_j))``, and its
    score b is their product. The highest ``ratio`` of each site's scores count:
    ``scale * sum w b delta / sum w b``. Norm is taken to mean moving a row to [0, 1]. The released code has other
    formulas, see ``pcb``.

    Differences from the paper:

    - there are weights, in the sum over j and in both sums of the result;
    - rows without a range have Norm 1; an update of zeros has no score, so that it does not dilute the others;
    - the softmax is over the scope;
    - sums of exponentials are sums of integers, multiples of 2^-43 of the largest term, so that they do not depend on
      how blocks are cut.

    On ternary updates Norm takes two or three values: the score of an entry says how many sites agree with it. Many
    scores are equal, and these count or do not count together, also where rounding makes them differ. No score is
    below 0: an entry that the others oppose counts less, not nothing.

    Time grows with the square of the number of sites.

    Args:
        ratio: share of the entries of each site that count, above 0, at most 1.
        scope: ``tensor`` ranks in each tensor; ``global`` ranks in the whole update, as the paper does.
        scale: factor of the result.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("pcb-paper(ratio=0.5)"), [[4, 2, 0.5, 1], [3, -2, 0.5, 2]]).round(2))
        [3.56 2.   0.   2.  ]
    """

    name: ClassVar[str] = "pcb-paper"
    ratio: float = 0.1
    scope: str = "tensor"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_density("rule.pcb-paper.ratio", self.ratio)
        check_scope("rule.pcb-paper.scope", self.scope)
        check_scale("rule.pcb-paper.scale", self.scale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> Competitions:
        """Find ranges and sums of products, then the levels of scores; memory is that of ``score_levels``."""
        by_tensor: dict[str, Competition] = {}
        for group in list_groups(updates, self.scope):
            by_tensor |= dict.fromkeys(group.names, self._compete(updates, group, weights))
        return Competitions(by_tensor)

    def _compete(self, updates: Updates, group: Group, weights: Floats) -> Competition:
        sites = updates.count
        low = np.full((sites, sites), np.inf)
        high = np.full((sites, sites), -np.inf)
        for ranges in map_blocks(updates, group, lambda _, values: _find_ranges(values)):
            np.minimum(low, ranges[0], out=low)
            np.maximum(high, ranges[1], out=high)
        sums = np.zeros((sites + 1, sites), object)  # Python integers, which do not overflow
        for part in map_blocks(updates, group, lambda _, values: _sum_exponentials(values, low, high)):
            sums += part.astype(object)
        sums = sums.astype(np.float64) / _ONE
        competition = Competition(low, high, pair_sums=sums[:-1], own_sums=sums[-1], level=np.zeros(sites))
        level, _ = score_levels(updates, group, self.ratio, lambda _, values: _score(values, weights, competition))
        return replace(competition, level=level)

    def merge_block(self, block: Block, state: Competitions) -> Floats:
        """Return the mean by scores, float64, shape (n,); 0 where nothing counts."""
        competition = state.by_tensor[block.name]
        scores = _score(block.values, block.weights, competition)
        counts = (
            weight * row * (row >= level * (1 - TIE))
            for row, level, weight in zip(scores, competition.level, block.weights, strict=True)
        )
        return self.scale * mean_by_counts(counts, block.values)


def _multiply_by_site(values: Array, site: int) -> Floats:
    """Multiply the entries of all sites by those of one site, shape (sites, n)."""
    deltas: Floats = values.astype(np.float64)
    products: Floats = deltas * deltas[site]
    return products


def _find_ranges(values: Array) -> Floats:
    """Find the least and the largest product of each two sites, shape (2, sites, sites)."""
    rows = [_multiply_by_site(values, site) for site in range(len(values))]
    return np.stack([[row.min(axis=1) for row in rows], [row.max(axis=1) for row in rows]])


def _exponentials(values: Array, site: int, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Compute ``exp(Norm(products) - 1)`` with each site, (sites, n), and ``exp(n (Norm(squares) - 1))``, (n,)."""
    norm = scale_to_unit(_multiply_by_site(values, site), low[site], high[site])
    return np.exp(norm - 1), np.exp(len(values) * (norm[site] - 1))


def _sum_exponentials(values: Array, low: Floats, high: Floats) -> NDArray[np.int64]:
    """Sum the exponentials of pairs, then those of sites, as integers, shape (sites + 1, sites)."""
    sites = len(values)
    out = np.zeros((sites + 1, sites), np.int64)
    for site in range(sites):
        pairs, own = _exponentials(values, site, low, high)
        out[site] = np.rint(pairs * _ONE).astype(np.int64).sum(axis=1)
        out[-1, site] = np.rint(own * _ONE).astype(np.int64).sum()
    return out


def _score(values: Array, weights: Floats, competition: Competition) -> Floats:
    """Multiply intra- and inter-balancing, shape (sites, n); 0 for updates of zeros."""
    out = np.zeros(values.shape)
    for site in range(len(values)):
        if competition.high[site, site] == 0:
            continue
        pairs, own = _exponentials(values, site, competition.low, competition.high)
        for weight, row, total in zip(weights, pairs, competition.pair_sums[site], strict=True):
            out[site] += weight * row / total
        out[site] *= own / competition.own_sums[site]
    return out
