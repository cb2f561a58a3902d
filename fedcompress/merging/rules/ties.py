"""TIES: trim, elect a sign, mean of those that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.statistics import check_density, check_scope, thresholds
from fedcompress.merging.updates import Updates

ELECTIONS = ("mass", "count")
Array = NDArray[np.float32]


TIE = 2.0**-40  # of the mass: what rounding may leave of a sum that is 0


def agreeing_mean(values: Array, weights: Floats, election: str, level: Array | None = None) -> Floats:
    """Mean of the entries that have the elected sign, by their weights; 0 on a tie and where nothing is sent.

    Sums are in float64, one pass over the sites.

    Args:
        values: updates, shape (sites, n).
        weights: of the sites.
        election: the sign of ``sum w x`` for ``mass``, of ``sum w sign(x)`` for ``count``.
        level: smallest magnitude of each site that takes part; all if left out.
    """
    size = values.shape[1]
    above, below, scaled, part = (np.zeros(size) for _ in range(4))
    plus, minus = np.zeros(size), np.zeros(size)
    kept, mask = np.empty(size, np.float32), np.empty(size, np.bool_)
    for number, (weight, value) in enumerate(zip(weights, values, strict=True)):
        if level is not None:
            np.abs(value, out=kept)
            np.greater_equal(kept, level[number], out=mask)
            value = np.multiply(value, mask, out=kept)
        plus += np.multiply(np.greater(value, 0, out=mask), weight, out=part)
        minus += np.multiply(np.less(value, 0, out=mask), weight, out=part)
        np.multiply(value, weight, out=scaled)
        above += np.maximum(scaled, 0, out=part)
        below += np.minimum(scaled, 0, out=part)  # apart: of 1e30 and 1e-10, a difference of sums keeps nothing
    vote, mass = (above + below, above - below) if election == "mass" else (plus - minus, plus + minus)
    share = np.where(vote > 0, plus, minus)
    share[np.abs(vote) <= TIE * mass] = 0
    chosen: Floats = np.where(vote > 0, above, below)
    return np.divide(chosen, share, out=np.zeros(size), where=share > 0)


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Keep the largest entries of each update, elect a sign for each place, average what agrees with it.

    Yadav et al. 2023 (arXiv:2306.01708, section 3). The released code trims the whole update
    (``scope=global``), peft and mergekit each tensor. Equal magnitudes are kept or dropped
    together. The mean is over the weights of those that agree, as in mergekit; peft divides by their
    number, so that equal weights that add up to 1 shrink its result. An exact tie gives 0: peft
    and mergekit take plus, which drifts where ternary updates tie often, the released
    code the sign of most entries of the whole update.
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2
    scope: str = "tensor"
    election: str = "mass"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_density("rule.ties.density", self.density)
        check_scope("rule.ties.scope", self.scope)
        if self.election not in ELECTIONS:
            raise ConfigError("rule.ties.election", self.election, f"one of {list(ELECTIONS)}")

    def collect_statistics(self, updates: Updates, weights: Floats) -> dict[str, Array]:
        """Thresholds."""
        return thresholds(updates, self.density, self.scope)

    def merge_block(self, block: Block, state: dict[str, Array]) -> Floats:
        """The agreeing mean of what is trimmed."""
        return self.scale * agreeing_mean(block.values, block.weights, self.election, state[block.name])
