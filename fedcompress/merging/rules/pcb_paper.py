"""PCB merging, as its paper has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.rules.ties import TIE
from fedcompress.merging.score_thresholds import Group, groups, score_levels, stacks, unit
from fedcompress.merging.statistics import check_density, check_scope
from fedcompress.merging.updates import Updates
from fedcompress.types import Array

_ONE = 2.0**43  # a softmax's largest term, in sums of integers, which do not depend on blocks


@dataclass(frozen=True)
class Competition:
    """Of one tensor or of the whole update, float64."""

    low: Floats  # (sites, sites): least product of two sites' entries
    high: Floats  # (sites, sites): largest
    pairs: Floats  # (sites, sites): sum of exp(Norm(products) - 1)
    own: Floats  # (sites,): sum of exp(n (Norm(squares) - 1))
    level: Floats  # (sites,): least score that counts


@dataclass(frozen=True, kw_only=True)
class PcbPaper:
    """Parameter competition balancing by softmax over the entries of an update.

    Du et al. 2024 (arXiv:2410.02396, section 3): with n sites, the intra-balancing of site i is
    ``Softmax(n Norm(delta_i * delta_i))``, its inter-balancing ``sum_j Softmax(Norm(delta_i * delta_j))``, and its
    score their product. The highest ``ratio`` of each site's scores b count: ``scale * sum w b delta / sum w b``. Norm
    is taken for moving a row to [0, 1]. The released code has other formulas, see ``pcb``.

    What differs: weights, in the sum over j and in both sums of the result. Rows without a range have Norm 1;
    an update of zeros has no score, so that it does not dilute. Softmax is over the scope. Sums of exponentials are of
    integers, multiples of 2^-43 of the largest term, so that no blocks change them. On ternary updates Norm
    takes two or three values: an entry's score is how many agree with it, and many are equal, which count or do not
    count together, also where rounding makes them differ. No score is below 0: an entry against the others counts less.

    Time grows with the square of the number of sites.

    Args:
        ratio: share of the entries of each site that count, above 0, at most 1.
        scope: ``tensor``, or ``global`` as in the paper.
        scale: of the result.

    Raises:
        ConfigError: a parameter is out of range.
    """

    name: ClassVar[str] = "pcb-paper"
    ratio: float = 0.1
    scope: str = "tensor"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_density("rule.pcb-paper.ratio", self.ratio)
        check_scope("rule.pcb-paper.scope", self.scope)
        check_scale("rule.pcb-paper.scale", self.scale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> dict[str, Competition]:
        """Ranges and sums of products, then levels of scores, by tensor; memory as of ``score_levels``."""
        out: dict[str, Competition] = {}
        for group in groups(updates, self.scope):
            found = self._compete(updates, group, weights)
            out |= dict.fromkeys(group.names, found)
        return out

    def _compete(self, updates: Updates, group: Group, weights: Floats) -> Competition:
        sites = updates.count
        low, high = np.full((sites, sites), np.inf), np.full((sites, sites), -np.inf)
        for found in stacks(updates, group, lambda _, values: _ranges(values)):
            np.minimum(low, found[0], out=low)
            np.maximum(high, found[1], out=high)
        sums = np.zeros((sites + 1, sites), object)
        for part in stacks(updates, group, lambda _, values: _sums(values, low, high)):
            sums += part.astype(object)
        sums = sums.astype(np.float64) / _ONE
        at = Competition(low, high, sums[:-1], sums[-1], np.zeros(sites))
        level, _ = score_levels(updates, group, self.ratio, lambda _, values: _score(values, weights, at))
        return Competition(low, high, at.pairs, at.own, level)

    def merge_block(self, block: Block, state: dict[str, Competition]) -> Floats:
        """The mean by scores, float64, shape (n,); 0 where nothing counts."""
        at = state[block.name]
        score = _score(block.values, block.weights, at)
        total, share = np.zeros(score.shape[1]), np.zeros(score.shape[1])
        for row, level, weight, value in zip(score, at.level, block.weights, block.values, strict=True):
            count = weight * row * (row >= level * (1 - TIE))
            total += count * value
            share += count
        return self.scale * np.divide(total, share, out=np.zeros_like(total), where=share > 0)


def _products(values: Array, site: int) -> Floats:
    """Of one site's entries with those of all, shape (sites, n)."""
    deltas: Floats = values.astype(np.float64)
    product: Floats = deltas * deltas[site]
    return product


def _ranges(values: Array) -> Floats:
    """Least and largest products, shape (2, sites, sites)."""
    rows = [_products(values, i) for i in range(len(values))]
    return np.stack([[row.min(axis=1) for row in rows], [row.max(axis=1) for row in rows]])


def _exponentials(values: Array, site: int, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """``exp(Norm(products) - 1)`` with each site, (sites, n), and ``exp(n (Norm(squares) - 1))``, (n,)."""
    norm = unit(_products(values, site), low[site], high[site])
    return np.exp(norm - 1), np.exp(len(values) * (norm[site] - 1))


def _sums(values: Array, low: Floats, high: Floats) -> NDArray[np.int64]:
    """Sums of the exponentials of pairs, then of sites, as integers, shape (sites + 1, sites)."""
    sites = len(values)
    out = np.zeros((sites + 1, sites), np.int64)
    for i in range(sites):
        pairs, own = _exponentials(values, i, low, high)
        out[i] = np.rint(pairs * _ONE).astype(np.int64).sum(axis=1)
        out[-1, i] = np.rint(own * _ONE).astype(np.int64).sum()
    return out


def _score(values: Array, weights: Floats, at: Competition) -> Floats:
    """Intra- times inter-balancing, shape (sites, n); 0 for updates of zeros."""
    out = np.zeros(values.shape)
    for i in range(len(values)):
        if at.high[i, i] == 0:
            continue
        pairs, own = _exponentials(values, i, at.low, at.high)
        for weight, row, total in zip(weights, pairs, at.pairs[i], strict=True):
            out[i] += weight * row / total
        out[i] *= own / at.own[i]
    return out
