"""DELLA drops small entries with a higher probability than large ones, scales up the rest, and elects signs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.dare import check_seed
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.statistics import check_density
from fedcompress.merging.ties_steps import check_election, disjoint_mean, elect_sign, sum_by_sign
from fedcompress.merging.updates import THREADS, Updates
from fedcompress.numerics.philox import words
from fedcompress.types import Array

LEVELS = 1024  # magnitudes that are kept of a tensor to rank its entries by; all of a smaller one


@dataclass(frozen=True)
class MagnitudeRanks:
    """The state of ``della``: what an entry is ranked by."""

    levels: Mapping[tuple[str, int], Array]  # by tensor and site (at most LEVELS,), float32: magnitudes, ascending


def find_levels(values: Array) -> Array:
    """Return the magnitudes of a flat tensor in ascending order; of a large one ``LEVELS`` at equal distances."""
    magnitudes: Array = np.sort(np.abs(values))
    if magnitudes.size <= LEVELS:
        return magnitudes
    return magnitudes[np.linspace(0, magnitudes.size - 1, LEVELS).astype(np.int64)]


def rank_magnitudes(values: Array, levels: Array) -> Floats:
    """Rank entries by their magnitude among levels, from 0 for the smallest to 1 for the largest.

    Entries of one magnitude share the middle of their ranks; a half is the rank of a lone entry.

    Args:
        values: entries, shape (n,).
        levels: what ``find_levels`` has returned, not empty.

    Returns:
        Shape (n,), float64.
    """
    if levels.size == 1:
        return np.full(values.shape, 0.5)
    magnitudes = np.abs(values)
    below = np.searchsorted(levels, magnitudes, "left")
    upto = np.searchsorted(levels, magnitudes, "right")
    return np.clip((below + upto - 1) / 2 / (levels.size - 1), 0, 1)


@dataclass(frozen=True, kw_only=True)
class Della(Elementwise[MagnitudeRanks]):
    """The rule keeps an entry with a probability that grows with its rank, divides by it, and merges as ``ties``.

    Deep et al. 2024 (arXiv:2406.11617, section 3): MAGPRUNE drops with a probability that falls linearly with the
    rank of the magnitude, and scales by ``1 / (1 - p)``, so that the expected value is the entry; then elect a sign,
    and average what agrees. The probability to keep is ``density - epsilon`` for the smallest entry and ``density +
    epsilon`` for the largest, as in mergekit; the paper's epsilon is the whole range, twice this one. Ranks are within
    the tensor, those of the paper and of mergekit within its rows. Masks are drawn as those of ``dare``.

    Args:
        density: mean probability to keep an entry, above 0, at most 1.
        epsilon: how far the probability is from it at either end; density - epsilon is above 0, density + epsilon
            at most 1.
        election: ``mass`` or ``count``, as of ``ties``.
        scale: factor of the result; the paper's lambda.
        seed: seed of the masks, from 0 to below 2^63.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("della(density=0.5,epsilon=0.25,seed=2)"), [[4, -1, 2, 3], [2, 1, 2, -5]]))
        [ 4.666667   0.         0.        -6.6666665]
    """

    name: ClassVar[str] = "della"
    density: float = 0.5
    epsilon: float = 0.1
    election: str = "mass"
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_density("rule.della.density", self.density)
        most = min(self.density, 1 - self.density)
        if not 0 <= self.epsilon <= most + 1e-12 or self.density - self.epsilon < 1e-6:
            rule = f"must be at least 0 and below {self.density:g}, at most {1 - self.density:g}"
            raise ConfigError("rule.della.epsilon", self.epsilon, rule)
        check_election("rule.della.election", self.election)
        check_scale("rule.della.scale", self.scale)
        check_seed("rule.della.seed", self.seed)

    def collect_statistics(self, updates: Updates, weights: Floats) -> MagnitudeRanks:
        """Find the levels that entries are ranked by; memory: one tensor of one site for each thread."""
        places = [(t.name, site) for t in updates.layout.tensors for site in range(updates.count)]
        with ThreadPoolExecutor(THREADS) as pool:
            levels = pool.map(lambda place: find_levels(updates.read(place[1], place[0])), places)
            return MagnitudeRanks(dict(zip(places, levels, strict=True)))

    def merge_block(self, block: Block, state: MagnitudeRanks) -> Floats:
        """Return the mean of the kept, scaled entries that have the elected sign, float64, shape (n,)."""
        kept = np.empty_like(block.values)
        for site, row in enumerate(block.values):
            keep = self.density + self.epsilon * (2 * rank_magnitudes(row, state.levels[block.name, site]) - 1)
            drawn = words(self.seed, f"della/{block.round_}/{site}/{block.name}", row.size, block.start)
            stays = drawn < np.floor(np.minimum(keep, 1) * 2**32)
            with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
                kept[site] = np.where(stays, row / keep, 0)
        sums = sum_by_sign(kept, block.weights)
        return self.scale * disjoint_mean(sums, elect_sign(sums, self.election))
