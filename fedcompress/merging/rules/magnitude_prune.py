"""Magnitude pruning takes the mean of the largest entries of each update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rescaling import check_rescale, find_factors, trim_and_scale
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import MagnitudeBounds, check_density, check_scope, find_thresholds
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class MagnitudePrune(Elementwise[MagnitudeBounds]):
    """The rule keeps the largest entries of each update, then takes ``sum_i w_i * delta_i``.

    This is the trim of TIES (arXiv:2306.01708, section 3) without its election, which peft calls magnitude_prune.
    What is left is not scaled up, unless ``rescale`` says so. Equal magnitudes are kept or dropped together, and at
    least one entry is kept; peft keeps ``int(density * n)`` entries, which may be none, and breaks ties by position.

    Args:
        density: share of the entries to keep, above 0, at most 1.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.
        rescale: ``none``, or the norm that each tensor of a site retains: ``l1``, ``l2`` or ``linf``, as in mergekit.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("magnitude-prune(density=0.5)"), [[4, -1, 0.5, 3], [2, 1, 0, -5]]))
        [ 3.  0.  0. -1.]
    """

    name: ClassVar[str] = "magnitude-prune"
    density: float = 0.2
    scope: str = "tensor"
    rescale: str = "none"

    def __post_init__(self) -> None:
        check_density("rule.magnitude-prune.density", self.density)
        check_scope("rule.magnitude-prune.scope", self.scope)
        check_rescale("rule.magnitude-prune.rescale", self.rescale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> MagnitudeBounds:
        """Find the smallest magnitude that stays, and what is left is scaled by."""
        bounds = MagnitudeBounds(low=find_thresholds(updates, self.density, self.scope))
        return replace(bounds, factors=find_factors(updates, bounds, self.rescale))

    def merge_block(self, block: Block, state: MagnitudeBounds) -> Floats:
        """Return the mean of what is kept, float64, shape (n,)."""
        return weighted_sum(trim_and_scale(block.name, block.values, state), block.weights)
