"""What rules must know of whole updates, each from one streaming pass."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.updates import THREADS, Updates, list_blocks

SCOPES = ("tensor", "global")
_BINS = 1 << 16


def check_density(field: str, density: float) -> None:
    """Raise ``ConfigError`` unless a density is one."""
    if not 0 < density <= 1:
        raise ConfigError(field, density, "must be above 0 and at most 1")


def check_scope(field: str, scope: str) -> None:
    """Raise ``ConfigError`` unless a scope is one."""
    if scope not in SCOPES:
        raise ConfigError(field, scope, f"one of {list(SCOPES)}")


def kept_of(density: float, size: int) -> int:
    """``ceil(density * size)``, at least 1 of a tensor that is not empty; 0.07 of 100 is 7."""
    return min(size, int(np.ceil(round(density * size, 6)))) if size else 0


def thresholds(updates: Updates, density: float, scope: str = "tensor") -> dict[str, NDArray[np.float32]]:
    """Smallest magnitude that is kept, of each site, by tensor; all entries of this magnitude are kept.

    Args:
        updates: of all sites.
        density: share of entries to keep.
        scope: ``tensor`` counts in each tensor, ``global`` in the whole update.
    """
    return magnitudes(updates, lambda size: kept_of(density, size), scope)


def magnitudes(updates: Updates, rank: Callable[[int], int], scope: str) -> dict[str, NDArray[np.float32]]:
    """The ``rank(size)``-th largest magnitude of each site, by tensor, shape (sites,); infinity for rank 0."""
    names = [t.name for t in updates.layout.tensors]
    if scope == "global":
        total = rank(updates.layout.numel)
        with ThreadPoolExecutor(THREADS) as pool:
            level = list(pool.map(lambda site: _global_level(updates, site, total), range(updates.count)))
        return dict.fromkeys(names, np.array(level, np.float32))
    places = [(spec, site) for spec in updates.layout.tensors for site in range(updates.count)]
    with ThreadPoolExecutor(THREADS) as pool:
        levels = pool.map(lambda p: largest(updates.read(p[1], p[0].name), rank(p[0].numel)), places)
        table = np.array(list(levels), np.float32).reshape(-1, updates.count)
    return dict(zip(names, table, strict=True))


def largest(values: NDArray[np.float32], count: int) -> float:
    """The ``count``-th largest magnitude; infinity if none is to be kept."""
    if not count:
        return float("inf")
    magnitude = np.abs(values)
    place = magnitude.size - count
    magnitude.partition(place)
    return float(magnitude[place])


def _global_level(updates: Updates, site: int, count: int) -> float:
    """The ``count``-th largest magnitude of a whole update, by two histograms of the bits of float32."""
    if not count:
        return float("inf")
    high = np.zeros(_BINS, np.int64)
    for name, start, stop in list_blocks(updates.layout, 1):
        high += np.bincount(_bits(updates, site, name, start, stop) >> 16, minlength=_BINS)
    above = np.cumsum(high[::-1])[::-1]  # entries whose high bits are at least these
    top = int(np.flatnonzero(above >= count)[-1])
    low = np.zeros(_BINS, np.int64)
    for name, start, stop in list_blocks(updates.layout, 1):
        bits = _bits(updates, site, name, start, stop)
        low += np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=_BINS)
    inside = np.cumsum(low[::-1])[::-1] + (above[top] - high[top])
    bottom = int(np.flatnonzero(inside >= count)[-1])
    return float(np.array(top << 16 | bottom, np.uint32).view(np.float32))


def _bits(updates: Updates, site: int, name: str, start: int, stop: int) -> NDArray[np.uint32]:
    return np.abs(updates.read(site, name, start, stop)).view(np.uint32)


def gram(updates: Updates) -> Floats:
    """Inner products of whole updates, shape (sites, sites), float64."""
    total = np.zeros((updates.count, updates.count))
    for name, start, stop in list_blocks(updates.layout, updates.count):
        values = np.stack([updates.read(i, name, start, stop) for i in range(updates.count)]).astype(np.float64)
        total += values @ values.T
    return total


def squared_distances(products: Floats) -> Floats:
    """Between updates, from their inner products, shape (sites, sites); symmetric, 0 to itself."""
    square = np.diagonal(products)
    apart = np.maximum(square[:, None] + square - products - products.T, 0)
    np.fill_diagonal(apart, 0)
    return apart


def norms(updates: Updates) -> Floats:
    """Euclidean norms of whole updates, shape (sites,), float64."""
    total = np.zeros(updates.count)
    for name, start, stop in list_blocks(updates.layout, 1):
        for site in range(updates.count):
            values = updates.read(site, name, start, stop).astype(np.float64)
            total[site] += values @ values
    return np.sqrt(total)
