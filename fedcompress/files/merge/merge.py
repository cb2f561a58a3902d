"""Adapter folders in, one adapter folder out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.files.merge.entrywise import merge_entries
from fedcompress.files.merge.factors import FactorUpdates, pairs_for
from fedcompress.files.merge.peft_types import ENTRIES
from fedcompress.files.merge.reduction import PRODUCT, Merged, MergeOptions, ModuleFactors, choose, merged, shortened
from fedcompress.files.merge.report import Statistics
from fedcompress.files.merge.sources import Site, check_together, is_magnitude, open_sites, row_of
from fedcompress.files.merge.writer import Result, config_of, dtype_of, means_of, write
from fedcompress.merging import Pair
from fedcompress.merging.base import Elementwise, Floats
from fedcompress.merging.engine import elementwise, normalized
from fedcompress.merging.lowrank import Term, dense_spectrum
from fedcompress.merging.product import DenseProducts
from fedcompress.merging.updates import Updates, UpdateSubset
from fedcompress.types import Array, Layout, TensorSpec

Progress = Callable[[int, int], None]  # modules done, modules in all


def merge_folders(
    paths: Sequence[Path],
    out: Path,
    *,
    rule: str = "exact",
    space: str = "factors",
    rank: int | None = None,
    energy: float | None = None,
    weights: Sequence[float] | None = None,
    base: Path | None = None,
    dtype: str = "",
    other_bases: bool = False,
    progress: Progress = lambda done, whole: None,
) -> dict[str, Any]:
    """Merge adapters of sites into one stock PEFT folder; with ``exact``, the weighted mean of their changes.

    Args:
        paths: PEFT folders and .fcu files; ranks, alphas, patterns and rsLoRA may differ.
        out: folder to write.
        rule: ``exact``, ``flora``, ``fedex``, or a merge rule.
        space: for rules that merge entry by entry: ``factors`` or ``product``.
        rank: to keep, for ``exact``, ``fedex`` and ``product``; default: all that there is.
        energy: instead, the share of the squared norm of each module to keep; ranks then differ by module.
        weights: of the adapters, normalised here; default: equal ones.
        base: what .fcu files were encoded against, if they were.
        dtype: to store; default float32 for factors, and the adapters' own for all else.
        other_bases: accept different base model names, where they are one model in different places.
        progress: called with modules done and modules in all.

    Returns:
        The report: sites, error and norms by module, cosines and contributions of sites.

    Raises:
        ConfigError: an option is wrong, or adapters do not go together; names adapter and field.
        LayoutError, NonFiniteError, StateError, WireError: an adapter is broken.
    """
    choice = choose(rule, space, rank, energy)
    shares = normalized([1.0] * len(paths) if weights is None else weights, len(paths)) if paths else np.zeros(0)
    dtype_of("", [], dtype)
    if out.exists() and (not out.is_dir() or any(out.resolve() == p.resolve() for p in paths)):
        raise ConfigError("-o", out, "must be a folder, and none of those that are merged")
    with tempfile.TemporaryDirectory(prefix="fedcompress-merge-") as scratch:
        sites = open_sites(paths, base, Path(scratch))
        check_together(sites, other_bases)
        row = row_of(paths[0], sites[0].config)
        if row.merge == ENTRIES:
            return merge_entries(sites, shares, choice, row, out, dtype, progress) | {"why": row.why}
        return _lora(sites, shares, choice, out, dtype, progress)


def _lora(
    sites: Sequence[Site], weights: Floats, choice: MergeOptions, out: Path, dtype: str, progress: Progress
) -> dict[str, Any]:
    statistics, found = Statistics(weights=weights), {}
    names, rule = sorted({n for s in sites for n in s.modules}), choice.elementwise
    pairs = pairs_for(sites, choice.name, pad=choice.space == PRODUCT) if rule else []
    updates = FactorUpdates(sites, pairs, weights.tolist())
    by_name, products = {p.name: p for p in pairs}, None
    if choice.space == PRODUCT:
        zero = {t.name: np.zeros(t.shape, np.float32) for t in updates.layout.tensors}
        products = DenseProducts(pairs, zero, updates)
    facts = rule.collect_statistics(products or updates, weights) if rule else None
    progress(0, len(names))
    for done, name in enumerate(names):
        held = _held(name, sites, weights)
        if rule and products:
            dense = _merged_entries(rule, (products.layout.by_name[name],), products, weights, facts)[name]
            pair = shortened(dense_spectrum(dense), choice)
        elif rule:
            pair = _in_factors(rule, by_name[name], updates, weights, facts)
        else:
            pair = merged(held, choice)
        found[name] = replace(pair, a=pair.a.astype(np.float32), b=pair.b.astype(np.float32))
        statistics.add(held, found[name])
        progress(done + 1, len(names))
    result = _result(sites, found, dtype)
    size = write(out, result, sites, weights)
    return _report(sites, weights, choice, result, statistics, out, size)


def _held(name: str, sites: Sequence[Site], weights: Floats) -> ModuleFactors:
    members = [i for i, s in enumerate(sites) if name in s.modules]
    terms = []
    for i in members:
        own = sites[i].modules[name]
        a, b = sites[i].read(own.a), sites[i].read(own.b)
        terms.append(Term(own.scaling, b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)))
    return ModuleFactors(
        name=name, shape=sites[members[0]].modules[name].shape, members=members, terms=terms, weights=weights
    )


def _merged_entries(
    rule: Elementwise, specs: tuple[TensorSpec, ...], updates: Updates, weights: Floats, facts: Any
) -> dict[str, Array]:
    base = {t.name: np.zeros(t.shape, np.float32) for t in specs}
    return elementwise(rule, base, weights, UpdateSubset(Layout(specs), updates), state=facts)


def _in_factors(rule: Elementwise, pair: Pair, updates: Updates, weights: Floats, facts: Any) -> Merged:
    out = _merged_entries(rule, (pair.a, pair.b), updates, weights, facts)
    return Merged(out[pair.b.name].astype(np.float64), out[pair.a.name].astype(np.float64))


def _result(sites: Sequence[Site], found: dict[str, Merged], dtype: str) -> Result:
    specs, factors = [], {}
    for name, pair in found.items():
        own = next(s.modules[name] for s in sites if name in s.modules)
        rank = pair.a.shape[0]
        for old, values, shape in (
            (own.a, pair.a, (rank, *own.a.shape[1:])),
            (own.b, pair.b, (own.b.shape[0], rank, *own.b.shape[2:])),
        ):
            spec = TensorSpec(name=old.name, shape=shape, dtype=dtype or "float32", group=old.group)
            specs.append(spec)
            factors[spec.name] = values.astype(np.float32).reshape(shape)
    means = means_of(sites, dtype, scaled=True)
    layout = Layout(tuple(sorted([*specs, *means], key=lambda t: t.name)))
    config = config_of(sites, {name: pair.a.shape[0] for name, pair in found.items()})
    return Result(config=config, layout=layout, factors=factors, means=means)


def _report(
    sites: Sequence[Site],
    weights: Floats,
    choice: MergeOptions,
    result: Result,
    statistics: Statistics,
    out: Path,
    size: int,
) -> dict[str, Any]:
    ranks = [m["rank"] for m in statistics.modules]
    notes = []
    if any(is_magnitude(t.name) for t in result.means):
        notes.append("DoRA: means of direction and of magnitude, each; not the mean of the adapted weights")
    if len({len(s.modules) for s in sites}) > 1:
        notes.append("modules that an adapter lacks count as a zero update of it")
    return {
        "path": str(out),
        "peft_type": "LORA",
        "rule": choice.name,
        "space": choice.space,
        "bytes": size,
        "parameters": result.layout.numel,
        "rank": [min(ranks), max(ranks)] if ranks else [],
        **statistics.facts(),
        "notes": notes,
        "sites": [
            {
                "path": str(s.path),
                "weight": float(w),
                "modules": len(s.modules),
                "ranks": sorted({f.rank for f in s.modules.values()}),
                "scaling": sorted({round(f.scaling, 6) for f in s.modules.values()}),
                "rslora": bool(s.config.get("use_rslora")),
            }
            for s, w in zip(sites, weights, strict=True)
        ],
        "modules": statistics.modules,
    }
