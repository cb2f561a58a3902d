"""Values of several sites in the order of their size, entry by entry, with their weights."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Floats

HALF = 2.0**-40  # what rounding may leave of a sum of weights
_NETWORK = 64  # sites up to which columns are sorted by whole rows


def ranked(values: NDArray[np.float32], weights: Floats) -> tuple[NDArray[np.float32], Floats]:
    """Each column from small to large.

    Returns:
        values: shape (sites, n).
        weights: shape (sites,) if they are equal, else those of the sorted values, shape (sites, n).
    """
    if (weights == weights[0]).all():
        return sorted_columns(values), weights
    order = np.argsort(values, axis=0, kind="stable")
    return np.take_along_axis(values, order, axis=0), weights[order]


def sorted_columns(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``numpy.sort(values, axis=0)``; by a network of minima and maxima of whole rows while it is short."""
    if len(values) > _NETWORK:
        return np.sort(values, axis=0)
    out = values.copy()
    low = np.empty_like(out[0])
    for upper, lower in network(len(values)):
        np.minimum(out[upper], out[lower], out=low)
        np.maximum(out[upper], out[lower], out=out[lower])
        out[upper] = low
    return out


@lru_cache
def network(size: int) -> tuple[tuple[int, int], ...]:
    """Pairs of rows to compare in turn (Batcher 1968, merge exchange; Knuth, volume 3, algorithm 5.2.2M)."""
    pairs, half = [], 1 << max(size - 1, 1).bit_length() - 1
    step = half
    while step:
        wide, rest, gap = half, 0, step
        while True:
            pairs += [(i, i + gap) for i in range(size - gap) if i & step == rest]
            if wide == step:
                break
            gap, wide, rest = wide - step, wide >> 1, step
        step >>= 1
    return tuple(pairs)
