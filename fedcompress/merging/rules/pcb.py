"""PCB merging, as its released code has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.task_arithmetic import check_scale
from fedcompress.merging.rules.ties import TIE
from fedcompress.merging.score_thresholds import groups, score_levels, unit
from fedcompress.merging.statistics import check_density, check_scope, magnitudes
from fedcompress.merging.updates import Updates
from fedcompress.types import Array


@dataclass(frozen=True)
class Ranges:
    """Of one tensor, each (sites,), float64."""

    smallest: Floats  # magnitudes below are raised to this
    largest: Floats  # magnitudes above are cut to this
    low: Floats  # scores up to this count nothing
    high: Floats  # the score that counts 1


@dataclass(frozen=True, kw_only=True)
class Pcb:
    """Parameter competition balancing: a mean by scores of importance and agreement.

    Du et al. 2024 (arXiv:2410.02396), in the form of ``pcb-merging.py`` and of the language part of the released code;
    the paper's form is ``pcb-paper``. With n sites and ``u`` the magnitude, clipped and moved to [0, 1], a score is
    ``exp(n u^2) * tanh(delta_i * sum_j delta_j)``; its lowest ``1 - ratio`` count 0, the rest grow to 1 linearly;
    the result is ``scale * sum w s delta / sum w s``. Statistics are of each site, per tensor or of the whole update.

    What differs: weights, in both sums (``sum_j delta_j`` is n times the weighted mean; the released code has none
    in the round trip and searches coefficients on test data); ``floor(clip * n)`` entries are clipped at either end,
    where the code cuts the largest entry of any small tensor; float64, in which no product of float32 underflows; rows
    without a range, NaN there: a row of equal magnitudes has ``u = 1``, and where all counted scores are equal (up to
    rounding) they count 1 if they are above 0, else 0. The factor ``exp(-n)`` against overflow cancels; scores
    that underflow with it, of small entries among hundreds of sites, count 0.

    Ternary updates have two magnitudes, so ``u`` says nothing, and what is left is agreement: entries
    count by ``tanh(delta_i * sum_j delta_j)`` alone, often all that are kept equally.

    Args:
        ratio: share of the entries of each site that count, above 0, at most 1.
        clip: share of the magnitudes that is clipped at either end, from 0 to below 0.5.
        scope: ``tensor``, or ``global`` as the released code.
        scale: of the result.

    Raises:
        ConfigError: a parameter is out of range.
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

    def collect_statistics(self, updates: Updates, weights: Floats) -> dict[str, Ranges]:
        """Ranges of magnitudes, then of scores, by tensor; memory as of ``score_levels``."""
        small = magnitudes(updates, lambda n: n - int(self.clip * n), self.scope)
        large = magnitudes(updates, lambda n: min(int(self.clip * n) + 1, n), self.scope)
        edges = {t: (small[t].astype(np.float64), large[t].astype(np.float64)) for t in small}
        out: dict[str, Ranges] = {}
        for group in groups(updates, self.scope):
            low, high = score_levels(
                updates, group, self.ratio, lambda name, values: _score(values, weights, *edges[name])
            )
            out |= {name: Ranges(*edges[name], low, high) for name in group.names}
        return out

    def merge_block(self, block: Block, state: dict[str, Ranges]) -> Floats:
        """The mean by scores, float64, shape (n,); 0 where nothing counts."""
        at = state[block.name]
        score = _score(block.values, block.weights, at.smallest, at.largest)
        span = (at.high - at.low)[:, None]
        ranged = span > TIE * np.maximum(np.abs(at.high), np.abs(at.low))[:, None]
        linear = np.clip((score - at.low[:, None]) / np.where(ranged, span, 1.0), 0, 1)
        level = (score >= at.low[:, None] * (1 - TIE)) & (at.high[:, None] > 0)
        counts = np.where(ranged, linear, level) * block.weights[:, None]
        values = block.values.astype(np.float64)
        clipped = np.copysign(_clipped(values, at.smallest, at.largest), values) * (values != 0)
        total, share = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        for count, value in zip(counts, clipped, strict=True):
            total += count * value
            share += count
        return self.scale * np.divide(total, share, out=np.zeros_like(total), where=share > 0)


def _clipped(values: Floats, smallest: Floats, largest: Floats) -> Floats:
    clipped: Floats = np.clip(np.abs(values), smallest[:, None], largest[:, None])
    return clipped


def _score(values: Array, weights: Floats, smallest: Floats, largest: Floats) -> Floats:
    """``exp(n (u^2 - 1)) * tanh(delta_i * sum_j delta_j)``, shape (sites, n)."""
    deltas, sites = values.astype(np.float64), len(values)
    total, mass = np.zeros(deltas.shape[1]), np.zeros(deltas.shape[1])
    for weight, delta in zip(weights, deltas, strict=True):
        total += sites * weight * delta
        mass += sites * weight * np.abs(delta)
    total[np.abs(total) <= TIE * mass] = 0  # what rounding left
    importance = unit(_clipped(deltas, smallest, largest), smallest, largest)
    score: Floats = np.exp(sites * (np.square(importance) - 1)) * np.tanh(deltas * total)
    return score
