"""DARE, then the election of TIES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.dare import check_seed, thinned
from fedcompress.merging.rules.ties import ELECTIONS, agreeing_mean
from fedcompress.merging.statistics import check_density
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class DareTies:
    """Drop entries at random, elect a sign for each place, mean of what agrees, divided by ``density``.

    Yu et al. 2024 (arXiv:2311.03099, section 3) with Yadav et al. 2023 (arXiv:2306.01708, section 3): the random
    drop takes the place of the trim. Masks are those of ``dare``; election, mean and ties are those of ``ties``. An
    entry that is left alone wins its election, and is 1 / density as large as it was.

    Args:
        density: probability to keep, above 0, at most 1.
        election: ``mass`` or ``count``, as of ties.
        seed: of the masks.

    Raises:
        ConfigError: a parameter is out of range.
    """

    name: ClassVar[str] = "dare-ties"
    density: float = 0.1
    election: str = "mass"
    seed: int = 0

    def __post_init__(self) -> None:
        check_density("rule.dare-ties.density", self.density)
        check_seed("rule.dare-ties.seed", self.seed)
        if self.election not in ELECTIONS:
            raise ConfigError("rule.dare-ties.election", self.election, f"one of {list(ELECTIONS)}")

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The agreeing mean of what is kept, scaled up, float64, shape (n,)."""
        left = thinned(block, self.density, self.seed)
        return agreeing_mean(left.values, left.weights, self.election) / self.density
