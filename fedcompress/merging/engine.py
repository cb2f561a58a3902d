"""Runs a rule over a layout, block by block or module by module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError, LayoutError
from fedcompress.merging.base import Block, Elementwise, Floats, Modular, Module, Pair, pairs_of
from fedcompress.merging.product import DenseProducts, changes, refactored
from fedcompress.merging.rules.mean import Mean
from fedcompress.merging.table import FOLDERS_ONLY, RULES
from fedcompress.merging.updates import THREADS, Updates, UpdateSubset, list_blocks, read_entries
from fedcompress.types import Array, Layout, Tensors

SPACES = ("factors", "product")
Progress = Callable[[int, int], None]


def parse_rule(text: str, *, field: str = "rule") -> Elementwise | Modular:
    """A rule from ``name`` or ``name(key=value,...)``.

    Raises:
        ConfigError: unknown name or key, or a value out of range; lists the choices. Or a form that is
            for folders only.
    """
    name = text.partition("(")[0].strip()
    if name in FOLDERS_ONLY:
        raise ConfigError(field, name, FOLDERS_ONLY[name])
    rule: Elementwise | Modular = parse_call(text, {name: row.config for name, row in RULES.items()}, field)
    return rule


def check_space(rule: Elementwise | Modular, space: str) -> None:
    """Raise ``ConfigError`` unless a rule can work in a space."""
    if space not in SPACES:
        raise ConfigError("space", space, f"one of {list(SPACES)}")
    if space == "product" and isinstance(rule, Modular):
        raise ConfigError("space", space, f"must be factors: {rule.name} works on products by itself")


def normalized(weights: Sequence[float], count: int) -> Floats:
    """Weights that add up to 1.

    Raises:
        ConfigError: there is no update, or weights do not have a positive sum.
    """
    total = float(sum(weights))
    if not count or len(weights) != count or not min(weights) >= 0 or not 0 < total < math.inf:
        raise ConfigError("weights", list(weights), f"must be {count} finite numbers >= 0 with a sum above 0")
    return np.array([w / total for w in weights])


@dataclass(frozen=True, kw_only=True)
class Merger:
    """A rule bound to a layout.

    Args:
        rule: what merges.
        layout: of published state and updates.
        space: ``factors`` merges LoRA factors entry by entry; ``product`` merges the dense changes of
            ``B A``, matrix by matrix, and finds factors for the result. For elementwise rules.
    """

    rule: Elementwise | Modular
    layout: Layout
    space: str = "factors"

    def __post_init__(self) -> None:
        check_space(self.rule, self.space)

    def merge(
        self,
        base: Mapping[str, Array],
        weights: Sequence[float],
        updates: Updates,
        *,
        round_: int = 1,
        progress: Progress = lambda done, whole: None,
    ) -> Tensors:
        """Merged update, in layout order.

        Args:
            base: the published state that all updates start from.
            weights: finite, nonnegative, one for each update; normalised here to add up to 1.
            updates: of sites in a fixed order, because floating-point sums depend on it.
            round_: for rules that alternate or draw.
            progress: called with entries done and entries in all.

        Raises:
            ConfigError: no update, or weights that do not have a positive sum.
            LayoutError: updates or base have another layout.
        """
        if updates.layout != self.layout:
            raise LayoutError("merge: the updates have another layout than the published state")
        self.layout.check(base, what="merge: base")
        shares = normalized(weights, updates.count)
        if isinstance(self.rule, Modular):
            return self._by_module(self.rule, base, shares, updates, round_, progress)
        if self.space == "product":
            return self._in_products(self.rule, base, shares, updates, round_, progress)
        return elementwise(self.rule, base, shares, updates, progress, round_=round_)

    def _by_module(
        self,
        rule: Modular,
        base: Mapping[str, Array],
        weights: Floats,
        updates: Updates,
        round_: int,
        progress: Progress,
    ) -> Tensors:
        pairs, lone = pairs_of(self.layout)
        out, done = elementwise(Mean(), base, weights, UpdateSubset(Layout(tuple(lone)), updates)), 0
        for pair in pairs:
            module = module_of(pair, base, weights, updates)
            out |= changes(pair, module, *rule.pair(module, round_))
            done += pair.a.numel + pair.b.numel
            progress(done, self.layout.numel)
        return {t.name: out[t.name] for t in self.layout.tensors}

    def _in_products(
        self,
        rule: Elementwise,
        base: Mapping[str, Array],
        weights: Floats,
        updates: Updates,
        round_: int,
        progress: Progress,
    ) -> Tensors:
        pairs, lone = pairs_of(self.layout)
        out, done = elementwise(rule, base, weights, UpdateSubset(Layout(tuple(lone)), updates), round_=round_), 0
        products = DenseProducts(pairs, base, updates)
        state = rule.collect_statistics(products, weights)
        for pair, spec in zip(pairs, products.layout.tensors, strict=True):
            published = {pair.name: base[pair.b.name] @ base[pair.a.name]}
            part = UpdateSubset(Layout((spec,)), products)
            dense = elementwise(rule, published, weights, part, state=state, round_=round_)
            out |= refactored(pair, module_of(pair, base, weights, updates), dense[pair.name])
            done += pair.a.numel + pair.b.numel
            progress(done, self.layout.numel)
        return {t.name: out[t.name] for t in self.layout.tensors}


def module_of(pair: Pair, base: Mapping[str, Array], weights: Floats, updates: Updates) -> Module:
    """Factors of a module from all sites."""
    a0, b0 = (base[t.name].astype(np.float64) for t in (pair.a, pair.b))
    factors = [
        (
            a0 + updates.read(i, pair.a.name).reshape(pair.a.shape),
            b0 + updates.read(i, pair.b.name).reshape(pair.b.shape),
        )
        for i in range(updates.count)
    ]
    return Module(pair.name, a0, b0, factors, weights)


_NOT_COLLECTED = object()


def elementwise(
    rule: Elementwise,
    base: Mapping[str, Array],
    weights: Floats,
    updates: Updates,
    progress: Progress = lambda done, whole: None,
    state: Any = _NOT_COLLECTED,
    round_: int = 1,
) -> Tensors:
    """Run an elementwise rule, a block at a time on each thread.

    Memory beside the result: a few times ``BLOCK`` entries for each thread.
    """
    if state is _NOT_COLLECTED:
        state = rule.collect_statistics(updates, weights)
    out = {t.name: np.zeros(t.numel, np.float32) for t in updates.layout.tensors}

    def one(place: tuple[str, int, int]) -> int:
        name, start, stop = place
        values = np.stack([updates.read(i, name, start, stop) for i in range(updates.count)])
        merged = rule.merge_block(
            Block(name, start, values, weights, read_entries(base, name, start, stop), round_), state
        )
        with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
            out[name][start:stop] = merged
        return stop - start

    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for size in pool.map(one, list_blocks(updates.layout, updates.count)):
            done += size
            progress(done, updates.layout.numel)
    return {t.name: out[t.name].reshape(t.shape) for t in updates.layout.tensors}
