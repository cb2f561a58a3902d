"""Values of several sites are sorted here entry by entry, together with the weights of their sites."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedcompress.merging.base import Floats
from fedcompress.types import Array

HALF_WEIGHT_SLACK = 2.0**-40  # what rounding may leave of a sum of weights that is exactly a half
_MAX_NETWORK = 64  # sites up to which columns are sorted by a network of whole rows


def sort_with_weights(values: Array, weights: Floats) -> tuple[Array, Floats]:
    """Sort each column from small to large.

    Args:
        values: shape (sites, n), float32.
        weights: shape (sites,), float64.

    Returns:
        The sorted values, shape (sites, n), and their weights: shape (sites,) if all are equal, else (sites, n).
    """
    if (weights == weights[0]).all():
        return sort_columns(values), weights
    order = np.argsort(values, axis=0, kind="stable")
    return np.take_along_axis(values, order, axis=0), weights[order]


def sort_columns(values: Array) -> Array:
    """Return ``numpy.sort(values, axis=0)``, computed by a network of minima and maxima of whole rows if it is short.

    The network is many times quicker for a few long rows.
    """
    if len(values) > _MAX_NETWORK:
        return np.sort(values, axis=0)
    out = values.copy()
    low = np.empty_like(out[0])
    for upper, lower in build_network(len(values)):
        np.minimum(out[upper], out[lower], out=low)
        np.maximum(out[upper], out[lower], out=out[lower])
        out[upper] = low
    return out


@lru_cache
def build_network(size: int) -> tuple[tuple[int, int], ...]:
    """Build a sorting network: pairs of rows to compare in turn, the smaller one to the first.

    This is Batcher's merge exchange (Batcher 1968; Knuth, volume 3, algorithm 5.2.2M).
    """
    pairs: list[tuple[int, int]] = []
    half = 1 << max(size - 1, 1).bit_length() - 1
    step = half
    while step:
        width = half
        rest = 0
        gap = step
        while True:
            pairs += [(i, i + gap) for i in range(size - gap) if i & step == rest]
            if width == step:
                break
            gap = width - step
            width >>= 1
            rest = step
        step >>= 1
    return tuple(pairs)
