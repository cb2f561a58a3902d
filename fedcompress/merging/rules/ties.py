"""TIES trims each update, elects a sign for each place, and averages the entries that agree with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rescaling import check_rescale, find_factors, trim_and_scale
from fedcompress.merging.statistics import MagnitudeBounds, check_density, check_scope, find_thresholds
from fedcompress.merging.ties_steps import check_election, disjoint_mean, elect_sign, sum_by_sign
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class Ties(Elementwise[MagnitudeBounds]):
    """The rule is ``trim``, ``elect_sign``, ``disjoint_mean``: only entries that agree with the majority are averaged.

    Yadav et al. 2023 (arXiv:2306.01708, section 3). The released code trims the whole update (``scope=global``), peft
    and mergekit trim each tensor. Equal magnitudes are kept or dropped together. The mean is over the weights of the
    sites that agree, as in mergekit; peft divides by the number of these sites, so that equal weights that add up to
    1 shrink its result. A tie of the vote, up to rounding (``TIE``), gives 0. peft and mergekit take plus, which
    drifts where ternary updates tie often; the released code takes the sign of most entries of the whole update.

    Args:
        density: share of the entries of each update to keep, above 0, at most 1.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.
        election: ``mass`` elects the sign of the weighted sum of entries, ``count`` the one of more weight of sites.
        scale: factor of the result; the paper's lambda.
        rescale: ``none``, or the norm that each trimmed tensor of a site retains: ``l1``, ``l2`` or ``linf``, as in
            mergekit.

    Raises:
        ConfigError: density, scope, election or rescale is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("ties(density=0.5)"), [[4, -1, 0, 3], [2, 1, 0, -5]]))
        [ 3.  0.  0. -5.]
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2
    scope: str = "tensor"
    election: str = "mass"
    scale: float = 1.0
    rescale: str = "none"

    def __post_init__(self) -> None:
        check_density("rule.ties.density", self.density)
        check_scope("rule.ties.scope", self.scope)
        check_election("rule.ties.election", self.election)
        check_rescale("rule.ties.rescale", self.rescale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> MagnitudeBounds:
        """Find the smallest magnitude that the trim keeps, and what is left is scaled by."""
        bounds = MagnitudeBounds(low=find_thresholds(updates, self.density, self.scope))
        return replace(bounds, factors=find_factors(updates, bounds, self.rescale))

    def merge_block(self, block: Block, state: MagnitudeBounds) -> Floats:
        """Return the mean of the trimmed entries that have the elected sign, float64, shape (n,)."""
        trimmed = trim_and_scale(block.name, block.values, state)
        sums = sum_by_sign(trimmed, block.weights)
        sign = elect_sign(sums, self.election)
        return self.scale * disjoint_mean(sums, sign)
