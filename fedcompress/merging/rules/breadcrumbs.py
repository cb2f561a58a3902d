"""Model breadcrumbs drop the smallest entries and the outliers of each update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rescaling import check_rescale, find_factors, trim_and_scale
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.statistics import MagnitudeBounds, check_scope, count_kept, find_magnitudes
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Elementwise[MagnitudeBounds]):
    """The rule drops the smallest and the largest entries of each update, then takes ``scale * sum_i w_i * delta_i``.

    Davari and Belilovsky 2023 (arXiv:2312.06795, section 3), whose masks are of each layer. Of n entries,
    ``floor(beta * n)`` are dropped from below and ``floor(gamma * n)`` from above; an entry as large as the last one
    that stays, stays too. So an update whose entries have one magnitude, as ternary codes make it, keeps all of them,
    or none if they are no more than ``gamma * n``: use the rule on dense updates. mergekit is given the final
    density, ``1 - beta - gamma``, instead of beta, and keeps ``int(density * n)`` entries; here both counts that are
    dropped are rounded down, so that one or two entries more may stay, and an update of a few entries is not emptied.

    Args:
        beta: share of the smallest entries that are dropped, from 0 to below 1.
        gamma: share of the largest entries that are dropped, from 0 to below 1 - beta.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.
        scale: factor of the weighted mean, as of ``task-arithmetic``; the paper's is a factor of the sum.
        rescale: ``none``, or the norm that each tensor of a site retains: ``l1``, ``l2`` or ``linf``, as in mergekit.

    Raises:
        ConfigError: a share is below 0, nothing would be left, or another parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("breadcrumbs(beta=0.4,gamma=0.2)"), [[5, -1, 2, -4, 3]]))
        [ 0.  0.  0. -4.  3.]
    """

    name: ClassVar[str] = "breadcrumbs"
    beta: float = 0.85
    gamma: float = 0.01
    scope: str = "tensor"
    scale: float = 1.0
    rescale: str = "none"

    def __post_init__(self) -> None:
        for field in ("beta", "gamma"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"rule.breadcrumbs.{field}", getattr(self, field), "must be at least 0 and below 1")
        if not self.beta + self.gamma < 1:
            raise ConfigError("rule.breadcrumbs.gamma", self.gamma, f"must be below 1 - beta, {1 - self.beta:g}")
        check_scope("rule.breadcrumbs.scope", self.scope)
        check_scale("rule.breadcrumbs.scale", self.scale)
        check_rescale("rule.breadcrumbs.rescale", self.rescale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> MagnitudeBounds:
        """Find the smallest and the largest magnitude that stay, and what is left is scaled by."""
        low = find_magnitudes(updates, self._count_from_above, self.scope)
        high = find_magnitudes(updates, self._rank_of_largest, self.scope)
        bounds = MagnitudeBounds(low=low, high=high)
        return replace(bounds, factors=find_factors(updates, bounds, self.rescale))

    def _count_from_above(self, size: int) -> int:
        """Return the rank of the smallest entry that stays; 1 is the largest entry of all."""
        return count_kept(1 - self.beta, size)

    def _rank_of_largest(self, size: int) -> int:
        """Return the rank of the largest entry that stays."""
        if not size:
            return 0
        return min(size - count_kept(1 - self.gamma, size) + 1, self._count_from_above(size))

    def merge_block(self, block: Block, state: MagnitudeBounds) -> Floats:
        """Return the scaled mean of what is kept, float64, shape (n,)."""
        return self.scale * weighted_sum(trim_and_scale(block.name, block.values, state), block.weights)
