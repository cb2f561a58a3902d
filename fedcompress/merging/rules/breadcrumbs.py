"""Model breadcrumbs: neither the smallest entries nor the outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.magnitude_prune import between
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.statistics import check_scope, kept_of, magnitudes
from fedcompress.merging.updates import Updates
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs:
    """Drop the smallest and the largest entries of each update, then scale * sum_i w_i * delta_i.

    Davari and Belilovsky 2023 (arXiv:2312.06795, section 3), where masks are of each layer. Of n entries,
    ``floor(beta * n)`` are dropped from below and ``floor(gamma * n)`` from above; an entry as large as the last one
    that stays, stays too. So an update whose entries have one magnitude, as of ternary codes, keeps all of them, or
    none if they are no more than ``gamma * n``: use it on dense updates. mergekit gives the final density,
    ``1 - beta - gamma``, instead of beta, and has an empty mask where gamma drops nothing.

    Args:
        beta: share of the smallest.
        gamma: share of the largest.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.
        scale: as of task-arithmetic: of the mean, not of the sum.

    Raises:
        ConfigError: a share is below 0, nothing would be left, or another parameter is out of range.
    """

    name: ClassVar[str] = "breadcrumbs"
    beta: float = 0.85
    gamma: float = 0.01
    scope: str = "tensor"
    scale: float = 1.0

    def __post_init__(self) -> None:
        for field in ("beta", "gamma"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"rule.breadcrumbs.{field}", getattr(self, field), "must be at least 0 and below 1")
        if not self.beta + self.gamma < 1:
            raise ConfigError("rule.breadcrumbs.gamma", self.gamma, f"must be below 1 - beta, {1 - self.beta:g}")
        check_scope("rule.breadcrumbs.scope", self.scope)
        check_scale("rule.breadcrumbs.scale", self.scale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> tuple[dict[str, Array], dict[str, Array]]:
        """Smallest and largest magnitude that is kept, by tensor, shape (sites,)."""
        low = magnitudes(updates, lambda size: kept_of(1 - self.beta, size), self.scope)
        high = magnitudes(updates, self._first, self.scope)
        return low, high

    def _first(self, size: int) -> int:
        """Rank of the largest entry that is kept."""
        return min(size - kept_of(1 - self.gamma, size) + 1, kept_of(1 - self.beta, size)) if size else 0

    def merge_block(self, block: Block, state: tuple[dict[str, Array], dict[str, Array]]) -> Floats:
        """The scaled mean of what is kept, float64, shape (n,)."""
        low, high = state
        return self.scale * weighted_sum(between(block, low[block.name], high[block.name]))
