"""DARE drops entries of each update at random and scales up the rest; ``darex-q`` is the same with another divisor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import check_density
from fedcompress.numerics.philox import words
from fedcompress.types import Array


def check_seed(field: str, seed: int) -> None:
    """Raise ``ConfigError`` unless a seed is at least 0 and below 2^63."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(field, seed, "must be at least 0 and below 2^63")


def draw_mask(block: Block, density: float, seed: int) -> NDArray[np.bool_]:
    """Draw which entries of a block stay, each with probability ``density``.

    Entry p of a tensor of the i-th site stays if word p of Philox, keyed by the seed and the label
    ``dare/round/i/name``, is below ``density * 2^32``. So a mask depends neither on blocks nor on threads, and
    each round has another one.

    Args:
        block: whose name, start, round and number of entries say which words are drawn.
        density: probability to stay, above 0, at most 1.
        seed: from 0 to below 2^63.

    Returns:
        Shape (sites, n).
    """
    sites, size = block.values.shape
    limit = np.uint64(density * 2**32)
    rows = [words(seed, f"dare/{block.round_}/{site}/{block.name}", size, block.start) for site in range(sites)]
    return np.stack(rows) < limit


def drop_at_random(block: Block, density: float, seed: int) -> Array:
    """Return the values of a block with zeros where ``draw_mask`` drops them; what stays is not scaled up.

    Args:
        block: the entries of all sites.
        density: probability to stay, above 0, at most 1; with 1 the values themselves are returned.
        seed: from 0 to below 2^63.

    Returns:
        Shape (sites, n), float32.
    """
    if density == 1:
        return block.values
    kept_entries: Array = block.values * draw_mask(block, density, seed)
    return kept_entries


@dataclass(frozen=True, kw_only=True)
class Dare(Stateless):
    """The rule keeps each entry with probability ``density``, divides it by ``q``, then takes ``sum_i w_i * delta_i``.

    Yu et al. 2024 (arXiv:2311.03099, section 3): drop, and rescale by the keep rate, so that the expected value is the
    mean. Masks are drawn from the seed, the round, the number of the site and the tensor's name, so that the same call
    gives the same result on every machine; peft and the released code draw from a global generator.

    Args:
        density: probability to keep an entry, above 0, at most 1.
        q: what the kept entries are divided by, from 1e-6 to 1; 0 is the density. For another value see ``darex-q``.
        seed: seed of the masks, from 0 to below 2^63.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("dare(density=0.5,seed=3)"), [[1, 2, 3, 4], [1, 2, 3, 4]]))
        [1. 0. 3. 0.]
    """

    name: ClassVar[str] = "dare"
    density: float = 0.1
    q: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(f"rule.{self.name}.density", self.density)
        check_seed(f"rule.{self.name}.seed", self.seed)
        self._check_divisor()

    def _check_divisor(self) -> None:
        if self.q and not 1e-6 <= self.q <= 1:
            raise ConfigError("rule.dare.q", self.q, "must be 0 (the density) or from 1e-6 to 1")

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the mean of what is kept, scaled up, float64, shape (n,)."""
        kept_entries = drop_at_random(block, self.density, self.seed)
        return weighted_sum(kept_entries, block.weights) / (self.q or self.density)
