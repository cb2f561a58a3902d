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


def agreeing_mean(values: Array, weights: Floats, election: str) -> Floats:
    """Mean of the entries that have the elected sign, by their weights; 0 on a tie and where nothing is sent.

    Args:
        values: trimmed updates, shape (sites, n).
        weights: of the sites.
        election: the sign of ``sum w x`` for ``mass``, of ``sum w sign(x)`` for ``count``.
    """
    votes = values if election == "mass" else np.sign(values)
    sign = np.sign(weights.astype(np.float64) @ votes)
    agrees = values * sign > 0
    share = weights @ agrees
    total = weights @ np.where(agrees, values, 0)
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)


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

    def survey(self, updates: Updates, weights: Floats) -> dict[str, Array]:
        """Thresholds."""
        return thresholds(updates, self.density, self.scope)

    def combine(self, block: Block, facts: dict[str, Array]) -> Floats:
        """The agreeing mean of what is trimmed."""
        kept = np.abs(block.values) >= facts[block.name][:, None]
        return self.scale * agreeing_mean(np.where(kept, block.values, np.float32(0)), block.weights, self.election)
