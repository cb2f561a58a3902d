"""PCB merging weighs entries by importance and agreement, in the form of its released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Elementwise, Floats
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.score_thresholds import list_groups, mean_by_counts, scale_to_unit, score_levels
from fedcompress.merging.statistics import TIE, check_density, check_scope, find_magnitudes
from fedcompress.merging.updates import Updates
from fedcompress.types import Array


@dataclass(frozen=True)
class Ranges:
    """Holds the ranges of one tensor; each has shape (sites,), float64."""

    smallest: Floats  # magnitudes below are raised to this
    largest: Floats  # magnitudes above are cut to this
    low: Floats  # scores up to this count nothing
    high: Floats  # the score that counts 1


@dataclass(frozen=True)
class PcbRanges:
    """The state of ``pcb``: the ranges of magnitudes and of scores."""

    by_tensor: Mapping[str, Ranges]


@dataclass(frozen=True, kw_only=True)
class Pcb(Elementwise[PcbRanges]):
    """The rule is parameter competition balancing: a mean by scores of importance and agreement.

    Du et al. 2024 (arXiv:2410.02396), in the form of ``pcb-merging.py`` and of the language part of the released code;
    the paper's form is ``pcb-paper``. With n sites, and ``u`` the magnitude, clipped and moved to [0, 1], the score of
    an entry is ``exp(n u^2) * tanh(delta_i * sum_j delta_j)``. The lowest ``1 - ratio`` of a site's scores count 0, the
    rest grow to 1 linearly, and the result is ``scale * sum w s delta / sum w s``. Statistics are of each site, per
    tensor or of the whole update.

    Differences from the released code:

    - both sums have weights: ``sum_j delta_j`` is n times the weighted mean. The released code has no weights in the
      round trip, and searches coefficients on test data;
    - ``floor(clip * n)`` entries are clipped at either end, where the code cuts the largest entry of any small tensor;
    - computation is in float64, in which no product of float32 numbers underflows;
    - rows without a range, which are NaN there, have values here: a row of equal magnitudes has ``u = 1``, and where
      all counted scores are equal (up to rounding) they count 1 if they are above 0, else 0;
    - a factor ``exp(-n)`` guards against overflow. It cancels; scores that underflow with it, of small entries among
      hundreds of sites, count 0.

    Ternary updates have two magnitudes, so ``u`` says nothing about them, and what is left is agreement: entries
    count by ``tanh(delta_i * sum_j delta_j)`` alone, so that often all that are kept count equally.

    Args:
        ratio: share of the entries of each site that count, above 0, at most 1.
        clip: share of the magnitudes that is clipped at either end, from 0 to below 0.5.
        scope: ``tensor`` ranks in each tensor; ``global`` ranks in the whole update, as the released code does.
        scale: factor of the result.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("pcb(ratio=0.25)"), [[2, 2, 0.125, 2], [2, -2, 0.125, 0]]))
        [2. 0. 0. 0.]
    """

    name: ClassVar[str] = "pcb"
    ratio: float = 0.1
    clip: float = 1e-4
    scope: str = "tensor"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_density("rule.pcb.ratio", self.ratio)
        check_scope("rule.pcb.scope", self.scope)
        check_scale("rule.pcb.scale", self.scale)
        if not 0 <= self.clip < 0.5:
            raise ConfigError("rule.pcb.clip", self.clip, "must be at least 0 and below 0.5")

    def collect_statistics(self, updates: Updates, weights: Floats) -> PcbRanges:
        """Find the ranges of magnitudes, then those of scores; memory is that of ``score_levels``."""
        small = find_magnitudes(updates, lambda size: size - int(self.clip * size), self.scope)
        large = find_magnitudes(updates, lambda size: min(int(self.clip * size) + 1, size), self.scope)
        edges = {name: (small[name].astype(np.float64), large[name].astype(np.float64)) for name in small}

        def score(name: str, values: Array) -> Floats:
            return _score(values, weights, *edges[name])

        by_tensor: dict[str, Ranges] = {}
        for group in list_groups(updates, self.scope):
            low, high = score_levels(updates, group, self.ratio, score)
            by_tensor |= {name: Ranges(*edges[name], low, high) for name in group.names}
        return PcbRanges(by_tensor)

    def merge_block(self, block: Block, state: PcbRanges) -> Floats:
        """Return the mean by scores, float64, shape (n,); 0 where nothing counts."""
        ranges = state.by_tensor[block.name]
        low = ranges.low[:, None]
        high = ranges.high[:, None]
        score = _score(block.values, block.weights, ranges.smallest, ranges.largest)
        span = high - low
        has_range = span > TIE * np.maximum(np.abs(high), np.abs(low))
        linear = np.clip((score - low) / np.where(has_range, span, 1.0), 0, 1)
        is_counted = (score >= low * (1 - TIE)) & (high > 0)
        counts = np.where(has_range, linear, is_counted) * block.weights[:, None]
        values = block.values.astype(np.float64)
        clipped = np.copysign(_clip_magnitudes(values, ranges.smallest, ranges.largest), values) * (values != 0)
        return self.scale * mean_by_counts(counts, clipped)


def _clip_magnitudes(values: Floats, smallest: Floats, largest: Floats) -> Floats:
    clipped: Floats = np.clip(np.abs(values), smallest[:, None], largest[:, None])
    return clipped


def _score(values: Array, weights: Floats, smallest: Floats, largest: Floats) -> Floats:
    """Compute ``exp(n (u^2 - 1)) * tanh(delta_i * sum_j delta_j)``, shape (sites, n)."""
    sites = len(values)
    deltas = values.astype(np.float64)
    total = np.zeros(deltas.shape[1])
    mass = np.zeros(deltas.shape[1])
    for weight, delta in zip(weights, deltas, strict=True):
        total += sites * weight * delta
        mass += sites * weight * np.abs(delta)
    total[np.abs(total) <= TIE * mass] = 0  # rounding may have left this of a sum that is 0
    importance = scale_to_unit(_clip_magnitudes(deltas, smallest, largest), smallest, largest)
    score: Floats = np.exp(sites * (np.square(importance) - 1)) * np.tanh(deltas * total)
    return score
