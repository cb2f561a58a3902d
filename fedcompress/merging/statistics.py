"""Finds what rules must know of whole updates: thresholds, norms and inner products, by streaming passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.updates import THREADS, Updates, list_blocks, read_block
from fedcompress.types import Array, TensorSpec

SCOPES = ("tensor", "global")  # what entries are ranked within: each tensor, or the whole update
TIE = 2.0**-40  # share of the sum of magnitudes that rounding may leave of a sum that is 0
_BINS = 1 << 16  # bins of a histogram over 16 bits


@dataclass(frozen=True)
class SiteShares:
    """The state of a rule that merges whole updates by new weights."""

    shares: Floats  # (sites,), float64: factor of each site's update in the sum


@dataclass(frozen=True)
class MagnitudeBounds:
    """The state of a rule that drops entries by their magnitude: what stays, by tensor."""

    low: Mapping[str, Array]  # by tensor (sites,), float32: smallest magnitude that stays; infinity if nothing does
    high: Mapping[str, Array] | None = None  # by tensor (sites,), float32: largest magnitude that stays; None: no limit
    factors: Mapping[str, Floats] | None = None  # by tensor (sites,), float64: what is left is scaled by; None: 1


def check_density(field: str, density: float) -> None:
    """Raise ``ConfigError`` unless a density is above 0 and at most 1."""
    if not 0 < density <= 1:
        raise ConfigError(field, density, "must be above 0 and at most 1")


def check_scope(field: str, scope: str) -> None:
    """Raise ``ConfigError`` unless a name is one of ``SCOPES``."""
    if scope not in SCOPES:
        raise ConfigError(field, scope, f"one of {list(SCOPES)}")


def count_kept(density: float, size: int) -> int:
    """Return ``ceil(density * size)``, so at least 1 of a tensor that is not empty; 0.07 of 100 is 7, not 8."""
    return min(size, int(np.ceil(round(density * size, 6)))) if size else 0


def find_thresholds(updates: Updates, density: float, scope: str = "tensor") -> dict[str, Array]:
    """Find the smallest magnitude that stays when the largest entries are kept; all entries of this magnitude stay.

    Args:
        updates: updates of all sites.
        density: share of entries to keep, above 0, at most 1.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.

    Returns:
        By tensor, shape (sites,), float32.
    """
    return find_magnitudes(updates, lambda size: count_kept(density, size), scope)


def find_magnitudes(updates: Updates, rank: Callable[[int], int], scope: str) -> dict[str, Array]:
    """Find the magnitude that has a given rank, of each site.

    Args:
        updates: updates of all sites.
        rank: from a number of entries to the rank: 1 is the largest magnitude, 0 is infinity.
        scope: ``tensor`` ranks the entries of each tensor, ``global`` those of the whole update.

    Returns:
        By tensor, shape (sites,), float32. Memory: one tensor of one site for each thread; with ``global`` the bins
        of a histogram.
    """
    names = [t.name for t in updates.layout.tensors]
    if scope == "global":
        count = rank(updates.layout.numel)
        with ThreadPoolExecutor(THREADS) as pool:
            levels = list(pool.map(lambda site: _find_global_level(updates, site, count), range(updates.count)))
        return dict.fromkeys(names, np.array(levels, np.float32))
    places = [(spec, site) for spec in updates.layout.tensors for site in range(updates.count)]

    def find(place: tuple[TensorSpec, int]) -> float:
        spec, site = place
        return find_largest(updates.read(site, spec.name), rank(spec.numel))

    with ThreadPoolExecutor(THREADS) as pool:
        levels_in_order = pool.map(find, places)
        table = np.array(list(levels_in_order), np.float32).reshape(-1, updates.count)
    return dict(zip(names, table, strict=True))


def find_largest(values: Array, count: int) -> float:
    """Return the ``count``-th largest magnitude of a flat array; infinity if ``count`` is 0."""
    if not count:
        return float("inf")
    magnitude = np.abs(values)
    place = magnitude.size - count
    magnitude.partition(place)
    return float(magnitude[place])


def _find_global_level(updates: Updates, site: int, count: int) -> float:
    """Find the ``count``-th largest magnitude of a whole update, by two histograms of the bits of float32.

    The bits of nonnegative float32 numbers are in the order of the numbers. The first histogram is of the upper 16
    bits, the second of the lower 16 bits of those entries whose upper bits are the ones that were found.
    """
    if not count:
        return float("inf")
    high = np.zeros(_BINS, np.int64)
    for name, start, stop in list_blocks(updates.layout, 1):
        high += np.bincount(_magnitude_bits(updates, site, name, start, stop) >> 16, minlength=_BINS)
    above = np.cumsum(high[::-1])[::-1]  # entries whose upper bits are at least these
    top = int(np.flatnonzero(above >= count)[-1])
    low = np.zeros(_BINS, np.int64)
    for name, start, stop in list_blocks(updates.layout, 1):
        bits = _magnitude_bits(updates, site, name, start, stop)
        low += np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=_BINS)
    inside = np.cumsum(low[::-1])[::-1] + (above[top] - high[top])
    bottom = int(np.flatnonzero(inside >= count)[-1])
    return float(np.array(top << 16 | bottom, np.uint32).view(np.float32))


def _magnitude_bits(updates: Updates, site: int, name: str, start: int, stop: int) -> NDArray[np.uint32]:
    return np.abs(updates.read(site, name, start, stop)).view(np.uint32)


def compute_gram(updates: Updates) -> Floats:
    """Compute the inner products of whole updates, shape (sites, sites), float64."""
    total = np.zeros((updates.count, updates.count))
    for name, start, stop in list_blocks(updates.layout, updates.count):
        values = read_block(updates, name, start, stop).astype(np.float64)
        total += values @ values.T
    return total


def compute_squared_distances(products: Floats) -> Floats:
    """Compute the squared distances of updates from their inner products.

    Args:
        products: shape (sites, sites), see ``compute_gram``.

    Returns:
        Shape (sites, sites): symmetric, nowhere below 0, and 0 on the diagonal.
    """
    squares = np.diagonal(products)
    distances = np.maximum(squares[:, None] + squares - products - products.T, 0)
    np.fill_diagonal(distances, 0)
    return distances


def compute_norms(updates: Updates) -> Floats:
    """Compute the Euclidean norms of whole updates, shape (sites,), float64."""
    total = np.zeros(updates.count)
    for name, start, stop in list_blocks(updates.layout, 1):
        for site in range(updates.count):
            values = updates.read(site, name, start, stop).astype(np.float64)
            total[site] += values @ values
    return np.sqrt(total)
