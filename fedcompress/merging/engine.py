"""The engine that runs a rule over a layout, block by block or module by module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError, LayoutError
from fedcompress.merging.base import AnyRule, Block, Elementwise, Floats, Modular, Module, Pair, State, pairs_of
from fedcompress.merging.product import DenseProducts, refactor_change, subtract_published
from fedcompress.merging.rules.mean import Mean
from fedcompress.merging.table import FOLDERS_ONLY, RULES
from fedcompress.merging.updates import (
    THREADS,
    InMemoryUpdates,
    Updates,
    UpdateSubset,
    list_blocks,
    read_block,
    read_entries,
)
from fedcompress.types import Array, Layout, Tensors, TensorSpec, zeros

SPACES = ("factors", "product")
Progress = Callable[[int, int], None]  # called with the entries that are merged and with all entries


def ignore_progress(done: int, total: int) -> None:
    """Ignore a report of progress."""


def parse_rule(text: str, *, field: str = "rule") -> AnyRule:
    """Parse a merge rule from ``name`` or ``name(key=value,...)``.

    Args:
        text: the call, such as ``ties(density=0.2)``.
        field: name of the setting, for error messages.

    Returns:
        The rule, with its defaults for all parameters that the text leaves out.

    Raises:
        ConfigError: a name or key is unknown or a value is out of range; the message lists the choices. It also says
            so if the name is a form that exists for folders only.
    """
    name = text.partition("(")[0].strip()
    if name in FOLDERS_ONLY:
        raise ConfigError(field, name, FOLDERS_ONLY[name])
    rule: AnyRule = parse_call(text, {name: row.config for name, row in RULES.items()}, field)
    return rule


def check_space(rule: AnyRule, space: str) -> None:
    """Raise ``ConfigError`` unless a rule can work in a space, ``factors`` or ``product``."""
    if space not in SPACES:
        raise ConfigError("space", space, f"one of {list(SPACES)}")
    if space == "product" and isinstance(rule, Modular):
        raise ConfigError("space", space, f"must be factors: {rule.name} works on products by itself")


def normalize_weights(weights: Sequence[float], count: int) -> Floats:
    """Divide weights by their sum.

    Args:
        weights: one finite number of at least 0 for each update.
        count: number of updates.

    Returns:
        Shape (count,), float64; they add up to 1.

    Raises:
        ConfigError: there is no update, or the weights are not ``count`` numbers with a positive sum.
    """
    total = float(sum(weights))
    if not count or len(weights) != count or not min(weights) >= 0 or not 0 < total < math.inf:
        raise ConfigError("weights", list(weights), f"must be {count} finite numbers >= 0 with a sum above 0")
    return np.array([weight / total for weight in weights])


@dataclass(frozen=True, kw_only=True)
class Merger:
    """A merger is a rule bound to a layout.

    Args:
        rule: how updates are merged, see ``parse_rule``.
        layout: the layout of the published state and of every update.
        space: where an elementwise rule merges LoRA modules. ``factors`` merges A and B entry by entry; ``product``
            merges the dense changes of ``B A``, matrix by matrix, and then finds factors for the result.
    """

    rule: AnyRule
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
        progress: Progress = ignore_progress,
    ) -> Tensors:
        """Merge the updates of several sites.

        Args:
            base: the published state that all updates start from.
            weights: one finite, nonnegative number for each update; they are divided by their sum here.
            updates: updates of the sites in a fixed order, because floating-point sums depend on it.
            round_: number of the round, for rules that alternate or draw random masks.
            progress: called with the entries that are merged and with all entries.

        Returns:
            The merged update, float32, in layout order.

        Raises:
            ConfigError: there is no update, the weights do not have a positive sum, or there are too few updates for
                the rule.
            LayoutError: the updates or the base have another layout.
        """
        if updates.layout != self.layout:
            raise LayoutError("merge: the updates have another layout than the published state")
        self.layout.check(base, what="merge: base")
        shares = normalize_weights(weights, updates.count)
        if isinstance(self.rule, Modular):
            return self._merge_modules(self.rule, base, shares, updates, round_, progress)
        if self.space == "product":
            return self._merge_products(self.rule, base, shares, updates, round_, progress)
        return merge_elementwise(self.rule, base, shares, updates, round_=round_, progress=progress)

    def _merge_modules(
        self,
        rule: Modular,
        base: Mapping[str, Array],
        weights: Floats,
        updates: Updates,
        round_: int,
        progress: Progress,
    ) -> Tensors:
        pairs, lone = pairs_of(self.layout)
        merged = merge_elementwise(Mean(), base, weights, UpdateSubset(Layout(tuple(lone)), updates))
        done = 0
        for pair in pairs:
            module = load_module(pair, base, weights, updates)
            merged |= subtract_published(pair, module, *rule.pair(module, round_))
            done += pair.a.numel + pair.b.numel
            progress(done, self.layout.numel)
        return {t.name: merged[t.name] for t in self.layout.tensors}

    def _merge_products(
        self,
        rule: Elementwise[State],
        base: Mapping[str, Array],
        weights: Floats,
        updates: Updates,
        round_: int,
        progress: Progress,
    ) -> Tensors:
        pairs, lone = pairs_of(self.layout)
        merged = merge_elementwise(rule, base, weights, UpdateSubset(Layout(tuple(lone)), updates), round_=round_)
        products = DenseProducts(pairs, base, updates)
        state = rule.collect_statistics(products, weights)
        done = 0
        for pair, spec in zip(pairs, products.layout.tensors, strict=True):
            published = {pair.name: base[pair.b.name] @ base[pair.a.name]}
            part = UpdateSubset(Layout((spec,)), products)
            dense = merge_with_state(rule, state, published, weights, part, round_=round_)
            merged |= refactor_change(pair, load_module(pair, base, weights, updates), dense[pair.name])
            done += pair.a.numel + pair.b.numel
            progress(done, self.layout.numel)
        return {t.name: merged[t.name] for t in self.layout.tensors}


def load_module(pair: Pair, base: Mapping[str, Array], weights: Floats, updates: Updates) -> Module:
    """Load the factors of one LoRA module from all sites.

    Args:
        pair: the module's two tensors.
        base: the published state.
        weights: shape (sites,), float64; they add up to 1.
        updates: updates of the sites.

    Returns:
        The published factors and those of each site, published plus update, in float64.
    """
    a0, b0 = (base[t.name].astype(np.float64) for t in (pair.a, pair.b))
    factors = [
        (
            a0 + updates.read(site, pair.a.name).reshape(pair.a.shape),
            b0 + updates.read(site, pair.b.name).reshape(pair.b.shape),
        )
        for site in range(updates.count)
    ]
    return Module(pair.name, a0, b0, factors, weights)


def merge_elementwise(
    rule: Elementwise[State],
    base: Mapping[str, Array],
    weights: Floats,
    updates: Updates,
    *,
    round_: int = 1,
    progress: Progress = ignore_progress,
) -> Tensors:
    """Run an elementwise rule over all tensors: collect its state, then merge block by block.

    Args:
        rule: the rule.
        base: the published state, with the layout of the updates.
        weights: shape (sites,), float64; they add up to 1.
        updates: updates of the sites.
        round_: number of the round, for rules that draw random masks.
        progress: called with the entries that are merged and with all entries.

    Returns:
        The merged update, float32, in layout order.
    """
    state = rule.collect_statistics(updates, weights)
    return merge_with_state(rule, state, base, weights, updates, round_=round_, progress=progress)


def merge_with_state(
    rule: Elementwise[State],
    state: State,
    base: Mapping[str, Array],
    weights: Floats,
    updates: Updates,
    *,
    round_: int = 1,
    progress: Progress = ignore_progress,
) -> Tensors:
    """Run an elementwise rule whose state has been collected, one block at a time on each thread.

    Memory beside the result: a few times ``BLOCK`` entries for each thread.

    Args:
        rule: the rule.
        state: what the rule's ``collect_statistics`` has returned. It may be of more tensors than are merged here.
        base: the published state, with the layout of the updates.
        weights: shape (sites,), float64; they add up to 1.
        updates: updates of the sites.
        round_: number of the round, for rules that draw random masks.
        progress: called with the entries that are merged and with all entries.

    Returns:
        The merged update, float32, in layout order.
    """
    merged = {t.name: np.zeros(t.numel, np.float32) for t in updates.layout.tensors}

    def merge_one(place: tuple[str, int, int]) -> int:
        name, start, stop = place
        values = read_block(updates, name, start, stop)
        block = Block(name, start, values, weights, read_entries(base, name, start, stop), round_)
        entries = rule.merge_block(block, state)
        with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
            merged[name][start:stop] = entries
        return stop - start

    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for size in pool.map(merge_one, list_blocks(updates.layout, updates.count)):
            done += size
            progress(done, updates.layout.numel)
    return {t.name: merged[t.name].reshape(t.shape) for t in updates.layout.tensors}


def merge_arrays(
    rule: AnyRule, updates: Sequence[ArrayLike], weights: Sequence[float] | None = None, *, round_: int = 1
) -> Array:
    """Merge a few small arrays, to try an elementwise rule or to show what it does.

    Args:
        rule: an elementwise rule; a modular rule gives the weighted mean, since an array alone is no LoRA module.
        updates: one array for each site, all of one shape.
        weights: one number for each site; all sites count alike if left out.
        round_: number of the round, for rules that draw random masks.

    Returns:
        The merged array, float32, of the shape of the updates.

    Raises:
        ConfigError: there is no update, or the weights do not have a positive sum.

    Examples:
        >>> print(merge_arrays(parse_rule("mean"), [[1, 0, 2], [3, 4, 2]], weights=[1, 3]))
        [2.5 3.  2. ]
    """
    arrays = [np.array(update, np.float32) for update in updates]
    counts = [1.0] * len(arrays) if weights is None else weights
    normalize_weights(counts, len(arrays))
    layout = Layout((TensorSpec(name="x", shape=arrays[0].shape),))
    sources = InMemoryUpdates(layout, [{"x": array} for array in arrays])
    return Merger(rule=rule, layout=layout).merge(zeros(layout), counts, sources, round_=round_)["x"]


def merge_factors(
    rule: AnyRule,
    factors: Sequence[tuple[ArrayLike, ArrayLike]],
    weights: Sequence[float] | None = None,
    *,
    published: tuple[ArrayLike, ArrayLike] | None = None,
    round_: int = 1,
) -> tuple[Floats, Floats]:
    """Merge a few small LoRA modules, to try a modular rule or to show what it does.

    Args:
        rule: a modular rule.
        factors: for each site its A, shape (rank, columns), and its B, shape (rows, rank): whole factors, not changes.
        weights: one number for each site; all sites count alike if left out.
        published: the A and B that the sites started from; those of the first site if left out.
        round_: number of the round, for rules that alternate.

    Returns:
        The merged A and B, float64.

    Raises:
        ConfigError: the rule is not modular, there is no site, or the weights do not have a positive sum.

    Examples:
        >>> a, b = merge_factors(parse_rule("fedit"), [([[1, 0]], [[2]]), ([[0, 1]], [[4]])])
        >>> print(a, b)
        [[0.5 0.5]] [[3.]]
    """
    if not isinstance(rule, Modular):
        raise ConfigError("rule", rule.name, "must be a rule for LoRA modules")
    shares = normalize_weights([1.0] * len(factors) if weights is None else weights, len(factors))
    sites = [(np.array(a, np.float64), np.array(b, np.float64)) for a, b in factors]
    a0, b0 = sites[0] if published is None else (np.array(factor, np.float64) for factor in published)
    return rule.pair(Module("module", a0, b0, sites, shares), round_)
