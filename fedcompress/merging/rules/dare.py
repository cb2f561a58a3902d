"""DARE: drop entries at random, scale up the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import check_density
from fedcompress.merging.updates import Updates
from fedcompress.numerics.philox import words


def check_seed(field: str, seed: int) -> None:
    """Raise ``ConfigError`` unless a seed is one."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(field, seed, "must be at least 0 and below 2^63")


def kept(block: Block, density: float, seed: int) -> NDArray[np.bool_]:
    """Which entries of a block stay, shape (sites, n), each with probability ``density``.

    Entry p of a tensor of the i-th site stays where word p of Philox, keyed by the seed and the label
    ``dare/round/i/name``, is below ``density * 2^32``. So a mask depends neither on blocks nor on threads, and
    is another one in each round.
    """
    size = block.values.shape[1]
    limit = np.uint64(density * 2**32)
    rows = [words(seed, f"dare/{block.round_}/{i}/{block.name}", size, block.start) for i in range(len(block.values))]
    return np.stack(rows) < limit


def thinned(block: Block, density: float, seed: int) -> Block:
    """The block with zeros where entries are dropped, not scaled."""
    return block if density == 1 else replace(block, values=block.values * kept(block, density, seed))


@dataclass(frozen=True, kw_only=True)
class Dare:
    """Keep each entry with probability ``density``, divide by ``q``, then sum_i w_i * delta_i.

    Yu et al. 2024 (arXiv:2311.03099, section 3): drop and rescale by the keep rate, so that the expected value is the
    mean. Masks are drawn from the seed, the round, the number of the site and the tensor's name, so that the same call
    gives the same result on every machine; peft and the released code draw from a global generator.

    Args:
        density: probability to keep, above 0, at most 1.
        q: what to divide by; 0 is the density. Another one is DAREx-q, see ``darex-q``.
        seed: of the masks.

    Raises:
        ConfigError: a parameter is out of range.
    """

    name: ClassVar[str] = "dare"
    density: float = 0.1
    q: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_density("rule.dare.density", self.density)
        check_seed("rule.dare.seed", self.seed)
        if self.q and not 1e-6 <= self.q <= 1:
            raise ConfigError("rule.dare.q", self.q, "must be 0 (the density) or from 1e-6 to 1")

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The mean of what is kept, scaled up, float64, shape (n,)."""
        return weighted_sum(thinned(block, self.density, self.seed)) / (self.q or self.density)
