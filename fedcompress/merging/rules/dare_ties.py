"""DARE-TIES drops entries at random, as DARE, and then elects signs, as TIES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.rules.dare import check_seed, drop_at_random
from fedcompress.merging.statistics import check_density
from fedcompress.merging.ties_steps import check_election, disjoint_mean, elect_sign, sum_by_sign


@dataclass(frozen=True, kw_only=True)
class DareTies(Stateless):
    """The rule is ``drop_at_random``, ``elect_sign``, ``disjoint_mean``, with a result that is divided by ``density``.

    Yu et al. 2024 (arXiv:2311.03099, section 3) with Yadav et al. 2023 (arXiv:2306.01708, section 3): the random
    drop takes the place of the trim. Masks are those of ``dare``; election, mean and ties are those of ``ties``. An
    entry that is left alone at its place wins the election, and becomes 1 / density times as large as it was.

    Args:
        density: probability to keep an entry, above 0, at most 1.
        election: ``mass`` or ``count``, as of ``ties``.
        seed: seed of the masks, from 0 to below 2^63.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("dare-ties(density=0.5,seed=3)"), [[4, -1, 2, 3], [2, 1, 2, -5]]))
        [8. 0. 4. 0.]
    """

    name: ClassVar[str] = "dare-ties"
    density: float = 0.1
    election: str = "mass"
    seed: int = 0

    def __post_init__(self) -> None:
        check_density("rule.dare-ties.density", self.density)
        check_seed("rule.dare-ties.seed", self.seed)
        check_election("rule.dare-ties.election", self.election)

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the mean of the kept entries that have the elected sign, scaled up, float64, shape (n,)."""
        kept_entries = drop_at_random(block, self.density, self.seed)
        sums = sum_by_sign(kept_entries, block.weights)
        sign = elect_sign(sums, self.election)
        return disjoint_mean(sums, sign) / self.density
