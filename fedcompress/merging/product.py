"""In product space each LoRA module is the dense change of its ``B A``, of which a few rows at a time are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcompress.merging.base import Floats, Module, Pair
from fedcompress.merging.lora_rules.ridge import average_factors, fit_left
from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Layout, Tensors, TensorSpec

RIDGE = 1e-3  # relative ridge of the fit of B, as the default of the rule lora-ridge


class DenseProducts:
    """Shows the updates of LoRA modules as dense matrices ``B_i A_i - B A``, as a source of updates.

    Nothing dense is held: ``read`` multiplies only the rows that it is asked for. Memory: one module's A of all sites.
    """

    def __init__(self, pairs: Sequence[Pair], base: Mapping[str, Array], updates: Updates) -> None:
        """Take the modules, the published state, and the updates of their factors."""
        self._updates = updates
        self._base = base
        self._pairs = {p.name: p for p in pairs}
        self.layout = Layout(tuple(TensorSpec(name=p.name, shape=p.shape, dtype=p.a.dtype) for p in pairs))
        self._cached_a: tuple[str, list[Array]] = ("", [])  # name of a module, and its A of all sites

    @property
    def count(self) -> int:
        """Return the number of sites."""
        return self._updates.count

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Compute flat entries of the change of a product, float32."""
        pair = self._pairs[name]
        rank = pair.a.shape[0]
        rows, columns = pair.shape
        end = rows * columns if stop is None else min(stop, rows * columns)
        first = start // columns
        last = -(-end // columns)
        delta = self._updates.read(site, pair.b.name, first * rank, last * rank).reshape(-1, rank)
        left = self._base[pair.b.name][first:last]
        change = (left + delta) @ self._read_a(pair, site) - left @ self._base[pair.a.name]
        flat: Array = change.reshape(-1)[start - first * columns : end - first * columns]
        return flat

    def _read_a(self, pair: Pair, site: int) -> Array:
        """Return A of a site, and keep those of all sites until another module is read."""
        cached = self._cached_a
        if cached[0] != pair.name:
            base = self._base[pair.a.name]
            all_a = [base + self._updates.read(i, pair.a.name).reshape(pair.a.shape) for i in range(self.count)]
            cached = (pair.name, all_a)
            self._cached_a = cached
        return cached[1][site]


def refactor_change(pair: Pair, module: Module, change: Array) -> Tensors:
    """Find changes of the factors for a dense change of their product.

    A becomes the mean of the sites' A, and B the matrix that fits the changed product on it by ridge least squares.
    The result is in the gauge of the published factors, like that of the rule ``lora-ridge``; what the rank cannot
    hold is lost.

    Args:
        pair: names of the two tensors.
        module: factors of all sites.
        change: dense change of ``B A``, shape (rows, columns).

    Returns:
        The changes of A and of B by tensor name, float32.
    """
    a, b = average_factors(module)
    product = module.b0 @ (module.a0 @ a.T) + change @ a.T
    return subtract_published(pair, module, a, fit_left(product, a, b, RIDGE))


def subtract_published(pair: Pair, module: Module, a: Floats, b: Floats) -> Tensors:
    """Subtract the published factors from new ones.

    Args:
        pair: names of the two tensors.
        module: the published factors.
        a: new A, shape (rank, columns), float64.
        b: new B, shape (rows, rank), float64.

    Returns:
        The changes of A and of B by tensor name, float32.
    """
    with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
        return {
            pair.a.name: (a - module.a0).astype(np.float32),
            pair.b.name: (b - module.b0).astype(np.float32),
        }
