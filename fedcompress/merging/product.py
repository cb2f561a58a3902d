"""Product space: each LoRA module as the dense change of its ``B A``, a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcompress.merging.base import Floats, Module, Pair
from fedcompress.merging.lora_rules.ridge import fit_left, mean_factors
from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Layout, Tensors, TensorSpec

RIDGE = 1e-3  # as of the rule lora-ridge


class DenseProducts:
    """Updates of the modules alone, as matrices ``B_i A_i - B A``.

    Nothing dense is kept: ``read`` multiplies the rows that it is asked for. Memory: one
    module's A of all sites.
    """

    def __init__(self, pairs: Sequence[Pair], base: Mapping[str, Array], updates: Updates) -> None:
        self._updates, self._base = updates, base
        self._pairs = {p.name: p for p in pairs}
        self.layout = Layout(tuple(TensorSpec(name=p.name, shape=p.shape, dtype=p.a.dtype) for p in pairs))
        self._right: tuple[str, list[Array]] = ("", [])

    @property
    def count(self) -> int:
        """How many sites."""
        return self._updates.count

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Flat entries of the change of a product, float32."""
        pair = self._pairs[name]
        rows, columns = pair.shape
        end, rank = rows * columns if stop is None else min(stop, rows * columns), pair.a.shape[0]
        first, last = start // columns, -(-end // columns)
        delta = self._updates.read(site, pair.b.name, first * rank, last * rank).reshape(-1, rank)
        left = self._base[pair.b.name][first:last]
        change = (left + delta) @ self._a(pair, site) - left @ self._base[pair.a.name]
        flat: Array = change.reshape(-1)[start - first * columns : end - first * columns]
        return flat

    def _a(self, pair: Pair, site: int) -> Array:
        """A of a site; those of one module are kept."""
        held = self._right
        if held[0] != pair.name:
            base, shape = self._base[pair.a.name], pair.a.shape
            all_a = [base + self._updates.read(i, pair.a.name).reshape(shape) for i in range(self.count)]
            held = self._right = (pair.name, all_a)
        return held[1][site]


def refactored(pair: Pair, module: Module, change: Array) -> Tensors:
    """Changes of the factors for a dense change of their product: mean A, and B that fits it by ridge least squares.

    In the gauge of the published factors, like the rule ``lora-ridge``; what the rank cannot hold is lost.
    """
    a, b = mean_factors(module)
    product = module.b0 @ (module.a0 @ a.T) + change @ a.T
    return changes(pair, module, a, fit_left(product, a, b, RIDGE))


def changes(pair: Pair, module: Module, a: Floats, b: Floats) -> Tensors:
    """New factors minus the published ones, float32."""
    with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
        return {
            pair.a.name: (a - module.a0).astype(np.float32),
            pair.b.name: (b - module.b0).astype(np.float32),
        }
