"""Fisher merging weighs each entry by how much each site's loss depends on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.engine import merge_elementwise, normalize_weights
from fedcompress.merging.updates import Updates, list_blocks
from fedcompress.types import Tensors, zeros

FLOORS = (1e-30, 1e30)  # the least and the largest floor that is allowed


def fisher(
    updates: Updates, fishers: Updates, weights: Sequence[float], floor: float = 1e-6, normalize: bool = True
) -> Tensors:
    """Merge updates by ``sum_i w_i F_i delta_i / sum_i w_i F_i``, entry by entry, in float64.

    Matena & Raffel 2022 (arXiv:2111.09832, Fisher merging): the maximum of the product of Gaussian posteriors with
    diagonal precisions F_i. The factors of the updates add up to 1 in every entry, so that merging updates is merging
    parameters. Where every F_i is 0 the result is the weighted mean. One update returns itself. A site whose Fisher is
    0 everywhere counts only where the others' are near the floor.

    Both inputs are read twice, in blocks; beside the result, memory is that of the blocks.

    Args:
        updates: updates of the sites, float32.
        fishers: diagonal Fisher of each site, of the same layout and in the same order.
        weights: one finite, nonnegative number for each site; they are divided by their sum here.
        floor: the smallest F that counts, from 1e-30 to 1e30; it applies after normalisation, so that 1e-6 is a
            millionth of a site's root mean square, and the floor is the same at every site.
        normalize: divide each site's F by its root mean square over the whole update, so that a site with large
            gradients does not win everywhere.

    Returns:
        The merged update, float32, in layout order.

    Raises:
        ConfigError: layouts or counts differ, a Fisher is negative or not finite, weights or floor are out of range.
    """
    if fishers.layout != updates.layout:
        raise ConfigError("fishers", f"{len(fishers.layout.tensors)} tensors", "must have the layout of the updates")
    if fishers.count != updates.count:
        raise ConfigError("fishers", fishers.count, f"must be {updates.count}, one for each update")
    if not FLOORS[0] <= floor <= FLOORS[1]:
        raise ConfigError("floor", floor, f"must be from {FLOORS[0]:g} to {FLOORS[1]:g}")
    shares = normalize_weights(weights, updates.count)
    means = [_root_mean_square(fishers, site) for site in range(fishers.count)]
    scales = np.array([1 / mean if normalize and mean > 0 else 1.0 for mean in means])
    return merge_elementwise(_Fisher(fishers, scales, floor), zeros(updates.layout), shares, updates)


@dataclass(frozen=True)
class _Fisher(Stateless):
    """The rule is bound to its Fishers, so it can be run by the engine but not parsed from text."""

    name: ClassVar[str] = "fisher"
    fishers: Updates
    scales: Floats  # (sites,): factor of each site's Fisher
    floor: float

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the mean by weights and Fishers, float64, shape (n,)."""
        size = block.values.shape[1]
        above = np.zeros(size)
        below = np.zeros(size)
        for site, (weight, values) in enumerate(zip(block.weights, block.values, strict=True)):
            own = self.fishers.read(site, block.name, block.start, block.start + size).astype(np.float64)
            share = np.maximum(own * self.scales[site], self.floor) * weight
            below += share
            above += share * values
        merged: Floats = above / below
        return merged


def _root_mean_square(fishers: Updates, site: int) -> float:
    """Compute the root mean square of a site's whole Fisher, and raise ``ConfigError`` where it is no Fisher."""
    total = 0.0
    for name, start, stop in list_blocks(fishers.layout, 1):
        values = fishers.read(site, name, start, stop).astype(np.float64)
        if not (values >= 0).all() or not np.isfinite(values).all():
            raise ConfigError(f"fishers.{site}.{name}", float(values.min()), "must be finite numbers >= 0")
        total += float(values @ values)
    return math.sqrt(total / max(fishers.layout.numel, 1))
