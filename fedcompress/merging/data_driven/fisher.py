"""Fisher merging: each entry is weighted by how much each site's loss depends on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.engine import elementwise, normalized
from fedcompress.merging.updates import Updates, list_blocks
from fedcompress.types import Tensors, zeros

FLOORS = (1e-30, 1e30)


def fisher(
    updates: Updates, fishers: Updates, weights: Sequence[float], floor: float = 1e-6, normalize: bool = True
) -> Tensors:
    """``sum_i w_i F_i delta_i / sum_i w_i F_i``, entry by entry, in float64.

    Matena & Raffel 2022 (arXiv:2111.09832, Fisher merging): the maximum of the product of Gaussian
    posteriors with diagonal precisions F_i. Weights add up to 1 in every entry, so that merging
    updates is merging parameters. Where every F_i is 0 this is the weighted mean. One update returns
    itself. A site whose Fisher is 0 everywhere counts only where the others' are near the floor.

    Both inputs are read twice, in blocks; beside the result, memory is that of the blocks.

    Args:
        updates: of the sites, float32.
        fishers: diagonal Fisher of each site, of the same layout and in the same order.
        weights: finite, nonnegative; normalised here to add up to 1.
        floor: smallest F; after normalisation, so that 1e-6 is a millionth of a site's root mean square, and
            the floor is the same at every site.
        normalize: divide each site's F by its root mean square over the whole update, so that a site
            with large gradients does not win everywhere.

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
    shares = normalized(weights, updates.count)
    means = [_root_mean_square(fishers, site) for site in range(fishers.count)]
    scales = np.array([1 / mean if normalize and mean > 0 else 1.0 for mean in means])
    return elementwise(_Fisher(fishers, scales, floor), zeros(updates.layout), shares, updates)


@dataclass(frozen=True)
class _Fisher:
    """The rule, bound to its Fishers."""

    name: ClassVar[str] = "fisher"
    fishers: Updates
    scales: Floats
    floor: float

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Done before."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The weighted mean of a block."""
        size = block.values.shape[1]
        above, below = np.zeros(size), np.zeros(size)
        for site, (weight, values) in enumerate(zip(block.weights, block.values, strict=True)):
            own = self.fishers.read(site, block.name, block.start, block.start + size).astype(np.float64)
            share = np.maximum(own * self.scales[site], self.floor) * weight
            below += share
            above += share * values
        merged: Floats = above / below
        return merged


def _root_mean_square(fishers: Updates, site: int) -> float:
    """Of a whole Fisher, which is checked on the way."""
    total = 0.0
    for name, start, stop in list_blocks(fishers.layout, 1):
        values = fishers.read(site, name, start, stop).astype(np.float64)
        if not (values >= 0).all() or not np.isfinite(values).all():
            raise ConfigError(f"fishers.{site}.{name}", float(values.min()), "must be finite numbers >= 0")
        total += float(values @ values)
    return math.sqrt(total / max(fishers.layout.numel, 1))
