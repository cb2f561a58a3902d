"""Which of the connected nodes are asked in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose(nodes: Sequence[int], count: int, seed: int, round_: int) -> list[int]:
    """``count`` nodes uniformly without replacement (0 or too many: all), in ascending order.

    Equal nodes, seed and round give an equal choice.
    """
    ordered = sorted(nodes)
    if not 0 < count < len(ordered):
        return ordered
    generator = np.random.Generator(np.random.Philox(key=[seed, round_]))
    return sorted(ordered[i] for i in generator.choice(len(ordered), size=count, replace=False))
