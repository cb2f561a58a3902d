"""Adapter folders go in here, and one adapter folder comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.files.merge.entrywise import merge_entries
from fedcompress.files.merge.experts import stack_factors
from fedcompress.files.merge.factors import FactorUpdates, list_pairs
from fedcompress.files.merge.missing import check_missing, find_missing
from fedcompress.files.merge.peft_types import ENTRIES
from fedcompress.files.merge.reduction import (
    PRODUCT,
    FactorPair,
    MergeOptions,
    ModuleFactors,
    check_options,
    reduce_module,
    truncate_spectrum,
)
from fedcompress.files.merge.report import Statistics
from fedcompress.files.merge.sources import Site, check_together, find_type, is_magnitude, open_sites
from fedcompress.files.merge.weights import check_sum, check_weights, scale_weights
from fedcompress.files.merge.writer import (
    MergedAdapter,
    choose_dtype,
    level_ranks,
    list_means,
    merge_configs,
    write_adapter,
)
from fedcompress.merging import Pair
from fedcompress.merging.base import Elementwise, Floats, State
from fedcompress.merging.engine import merge_with_state
from fedcompress.merging.lowrank import Term, dense_spectrum
from fedcompress.merging.product import DenseProducts
from fedcompress.merging.updates import Updates, UpdateSubset
from fedcompress.types import Array, Layout, TensorSpec

Progress = Callable[[int, int], None]  # called with modules done and modules in all
Reduction = Callable[[ModuleFactors], FactorPair]  # from the factors of all sites to one pair


def merge_adapters(
    paths: Sequence[Path],
    out: Path,
    *,
    rule: str = "exact",
    space: str = "factors",
    rank: int | None = None,
    energy: float | None = None,
    weights: Sequence[float] | None = None,
    as_sum: bool = False,
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
        rank: rank to keep, for ``exact``, ``fedex`` and ``product``; all that there is if left out.
        energy: instead of a rank, the share of the squared norm of each module to keep; ranks then differ by module.
        weights: weights of the adapters, which are divided by their sum here; equal ones if left out. Negative ones,
            which make the model forget (Ilharco et al. 2023, arXiv:2212.04089), are for what is linear in them.
        as_sum: take the weights as they are: the result is the sum of the weighted changes, not their mean.
        base: what .fcu files were encoded against, if they were.
        dtype: dtype to store; if empty, float32 for factors, and the adapters' own for all else.
        other_bases: accept different base model names, where they are one model in different places.
        progress: called with modules done and modules in all.

    Returns:
        The report: sites, error and norms by module, cosines and contributions of sites.

    Raises:
        ConfigError: an option is wrong, or adapters do not go together; names adapter and field.
        LayoutError: an adapter is broken.
        NonFiniteError: an adapter has NaN or infinity, or the result is too large for float32.
        StateError: a file of an adapter does not parse.
        WireError: a .fcu file is malformed.
    """
    options = check_options(rule, space, rank, energy)
    shares = scale_weights(weights, len(paths), as_sum) if paths else np.zeros(0)
    check_weights(shares, options, as_sum)
    choose_dtype("", [], dtype)  # raises if the dtype is unknown
    if out.exists() and (not out.is_dir() or any(out.resolve() == p.resolve() for p in paths)):
        raise ConfigError("-o", out, "must be a folder, and none of those that are merged")
    with tempfile.TemporaryDirectory(prefix="fedcompress-merge-") as scratch:
        sites = open_sites(paths, base, Path(scratch))
        check_together(sites, other_bases)
        check_missing(sites)
        if as_sum:
            check_sum(sites, shares)
        row = find_type(paths[0], sites[0].config)
        if row.merge == ENTRIES:
            return merge_entries(sites, shares, options, row, out, dtype, progress) | {"why": row.why}
        return _merge_lora(sites, shares, options, out, dtype, progress)


def _merge_lora(
    sites: Sequence[Site], weights: Floats, options: MergeOptions, out: Path, dtype: str, progress: Progress
) -> dict[str, Any]:
    is_dora = any(is_magnitude(t.name) for s in sites for t in s.others)
    statistics = Statistics(weights=weights, is_known=not is_dora)
    merged: dict[str, FactorPair] = {}
    names = sorted({n for s in sites for n in s.modules})
    reduce = _choose_reduction(sites, weights, options)
    progress(0, len(names))
    for done, name in enumerate(names, start=1):
        module = _load_module(name, sites, weights)
        pair = reduce(module)
        merged[name] = replace(pair, a=pair.a.astype(np.float32), b=pair.b.astype(np.float32))
        statistics.add(module, merged[name])
        progress(done, len(names))
    result = _assemble(sites, merged, dtype)
    size = write_adapter(out, result, sites, weights)
    return _report(sites, weights, options, result, statistics, out, size)


def _load_module(name: str, sites: Sequence[Site], weights: Floats) -> ModuleFactors:
    """Read the factors of one module from the sites that have it."""
    members = [i for i, s in enumerate(sites) if name in s.modules]
    terms = []
    for i in members:
        own = sites[i].modules[name]
        a = sites[i].read_a(own)
        b = sites[i].read_b(own)
        terms.append(Term(own.scaling, b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)))
    return ModuleFactors(
        name=name, shape=sites[members[0]].modules[name].shape, members=members, terms=terms, weights=weights
    )


def _choose_reduction(sites: Sequence[Site], weights: Floats, options: MergeOptions) -> Reduction:
    """Return how a module is merged; a rule that merges entries collects its statistics here."""
    rule = options.elementwise
    if rule is None:
        return lambda module: reduce_module(module, options)
    pairs = list_pairs(sites, options.name, pad=options.space == PRODUCT)
    updates = FactorUpdates(sites, pairs, weights.tolist())
    if options.space == PRODUCT:
        return _reduce_products(rule, pairs, updates, weights, options)
    return _reduce_factors(rule, pairs, updates, weights)


def _reduce_products(
    rule: Elementwise[State], pairs: Sequence[Pair], updates: Updates, weights: Floats, options: MergeOptions
) -> Reduction:
    """Return a reduction that merges the entries of dense products, and truncates the result."""
    zero = {t.name: np.zeros(t.shape, np.float32) for t in updates.layout.tensors}
    products = DenseProducts(pairs, zero, updates)
    state = rule.collect_statistics(products, weights)

    def reduce(module: ModuleFactors) -> FactorPair:
        spec = products.layout.by_name[module.name]
        dense = _merge_tensors(rule, state, (spec,), products, weights)[module.name]
        return truncate_spectrum(dense_spectrum(dense), options)

    return reduce


def _reduce_factors(rule: Elementwise[State], pairs: Sequence[Pair], updates: Updates, weights: Floats) -> Reduction:
    """Return a reduction that merges the entries of A and those of B."""
    by_name = {p.name: p for p in pairs}
    state = rule.collect_statistics(updates, weights)

    def reduce(module: ModuleFactors) -> FactorPair:
        pair = by_name[module.name]
        merged = _merge_tensors(rule, state, (pair.a, pair.b), updates, weights)
        return FactorPair(merged[pair.b.name].astype(np.float64), merged[pair.a.name].astype(np.float64))

    return reduce


def _merge_tensors(
    rule: Elementwise[State], state: State, specs: tuple[TensorSpec, ...], updates: Updates, weights: Floats
) -> dict[str, Array]:
    base = {t.name: np.zeros(t.shape, np.float32) for t in specs}
    return merge_with_state(rule, state, base, weights, UpdateSubset(Layout(specs), updates))


def _assemble(sites: Sequence[Site], merged: dict[str, FactorPair], dtype: str) -> MergedAdapter:
    """Put the merged factors into the tensors that PEFT stores, and add config and other tensors.

    Their scaling by PEFT is that of the config, so B takes what this is not 1 times.
    """
    experts: dict[str, list[str]] = {}  # by module of the file: names of its experts, or its own
    located = {name: next(s.modules[name] for s in sites if name in s.modules) for name in merged}
    for name in sorted(merged, key=lambda n: located[n].expert):
        experts.setdefault(located[name].module, []).append(name)
    ranks = {module: max(merged[n].a.shape[0] for n in names) for module, names in experts.items()}
    ranks = level_ranks(ranks, {located[n].module: located[n].keys for n in merged})
    config = merge_configs(sites, ranks)
    specs: list[TensorSpec] = []
    factors: dict[str, Array] = {}
    for module, rank in ranks.items():
        own = located[experts[module][0]]
        a, b = stack_factors([(merged[n].a, merged[n].b) for n in experts[module]], rank)
        scaling = 1.0 if config["alpha_pattern"] else config["lora_alpha"] / rank
        for old, values, shape in (
            (own.a, a, (a.shape[0], *own.a.shape[1:])),
            (own.b, b / scaling, (own.b.shape[0], b.shape[1], *own.b.shape[2:])),
        ):
            spec = TensorSpec(name=old.name, shape=shape, dtype=dtype or "float32", group=old.group)
            specs.append(spec)
            factors[spec.name] = values.astype(np.float32).reshape(shape)
    means = list_means(sites, dtype, scaled=True)
    layout = Layout(tuple(sorted([*specs, *means], key=lambda t: t.name)))
    return MergedAdapter(config=config, layout=layout, factors=factors, means=means)


def _report(
    sites: Sequence[Site],
    weights: Floats,
    options: MergeOptions,
    result: MergedAdapter,
    statistics: Statistics,
    out: Path,
    size: int,
) -> dict[str, Any]:
    ranks = [m["rank"] for m in statistics.modules]
    return {
        "path": str(out),
        "peft_type": "LORA",
        "rule": options.name,
        "space": options.space,
        "bytes": size,
        "parameters": result.layout.numel,
        "rank": [min(ranks), max(ranks)] if ranks else [],
        **statistics.summarize(),
        "notes": _list_notes(sites, statistics),
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


def _list_notes(sites: Sequence[Site], statistics: Statistics) -> list[str]:
    notes = []
    if not statistics.is_known:
        notes.append(
            "DoRA: means of direction and of magnitude, each; not the mean of the adapted weights. How far from it "
            "they are depends on the base model, so there are no figures"
        )
    missing = find_missing(sites)
    if missing:
        whole = len({f.module for s in sites for f in s.modules.values()})
        lacks = ", ".join(f"{sites[i].path} lacks {len(names)} of {whole}" for i, names in missing.items())
        notes.append(f"modules that an adapter lacks count as a zero update of it: {lacks}")
    if len({s.config.get("base_model_name_or_path") or "" for s in sites}) > 1:
        notes.append("the base model has different names: the result has that of the first adapter")
    return notes
