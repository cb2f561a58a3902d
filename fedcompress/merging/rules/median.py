"""The coordinate-wise weighted median takes the middle value of each entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.weighted_order import HALF_WEIGHT_SLACK, sort_with_weights


@dataclass(frozen=True, kw_only=True)
class Median(Stateless):
    """The rule takes the value with half of the weight on either side, entry by entry.

    Where the half lies between two values, the result is their mean.

    Yin et al. 2018 (arXiv:1803.01498, definition 1), where all weights are equal. With less than half of the weight
    at malicious sites, every entry lies within the range of the honest values of that entry. Weights by examples are
    claims of the sites: weigh uniformly where they may lie.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("median"), [[1, 5], [2, 6], [100, -9]]))
        [2. 5.]
    """

    name: ClassVar[str] = "median"

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the weighted median of each entry, float64, shape (n,)."""
        values, weights = sort_with_weights(block.values, block.weights)
        at_least_half = 0.5 - HALF_WEIGHT_SLACK
        above_half = 0.5 + HALF_WEIGHT_SLACK
        below = np.cumsum(weights, axis=0)
        if weights.ndim == 1:
            low = values[int(np.argmax(below >= at_least_half))]
            high = values[int(np.argmax(below > above_half))]
        else:
            columns = np.arange(values.shape[1])
            low = values[np.argmax(below >= at_least_half, axis=0), columns]
            high = values[np.argmax(below > above_half, axis=0), columns]
        middle: Floats = (low.astype(np.float64) + high) / 2
        return middle
