"""Mean of the largest entries of each update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import check_density, check_scope, thresholds
from fedcompress.merging.updates import Updates
from fedcompress.types import Array


def between(block: Block, low: Array, high: Array | None = None) -> Block:
    """The block with zeros where a magnitude is below ``low`` or above ``high`` of its site."""
    size = np.abs(block.values)
    kept = size >= low[:, None]
    if high is not None:
        kept &= size <= high[:, None]
    return replace(block, values=block.values * kept)


@dataclass(frozen=True, kw_only=True)
class MagnitudePrune:
    """Keep the largest entries of each update, then sum_i w_i * delta_i.

    The trim of TIES (arXiv:2306.01708, section 3) without its election, which peft calls magnitude_prune. What is
    left is not scaled up. Equal magnitudes are kept or dropped together, and at least one entry is kept; peft keeps
    ``int(density * n)``, which may be none, and breaks ties by position.

    Args:
        density: share to keep, above 0, at most 1.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.

    Raises:
        ConfigError: a parameter is out of range.
    """

    name: ClassVar[str] = "magnitude-prune"
    density: float = 0.2
    scope: str = "tensor"

    def __post_init__(self) -> None:
        check_density("rule.magnitude-prune.density", self.density)
        check_scope("rule.magnitude-prune.scope", self.scope)

    def collect_statistics(self, updates: Updates, weights: Floats) -> dict[str, Array]:
        """Smallest magnitude that is kept, by tensor, shape (sites,)."""
        return thresholds(updates, self.density, self.scope)

    def merge_block(self, block: Block, state: dict[str, Array]) -> Floats:
        """The mean of what is kept, float64, shape (n,)."""
        return weighted_sum(between(block, state[block.name]))
