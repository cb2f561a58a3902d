"""The config and the weights file of a merged adapter are written here."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.adapters.groups import PREFIX, group_of
from fedcompress.adapters.safetensors_io import Sink
from fedcompress.adapters.scaling import match_pattern
from fedcompress.chunks import TensorSlice, split_layout
from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.files.merge.sources import Site, is_bias
from fedcompress.merging.base import Floats
from fedcompress.types import DTYPES, Array, Layout, TensorSpec


@dataclass(frozen=True, kw_only=True)
class MergedAdapter:
    """Holds what is written: factors in memory, and specs of other tensors, whose means are computed by the slice."""

    config: dict[str, Any]  # adapter_config.json
    layout: Layout  # of the weights file
    factors: Mapping[str, Array]  # by name in the file, float32
    means: Sequence[TensorSpec]  # tensors that are averaged entry by entry


def level_ranks(ranks: Mapping[str, int], keys: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Give one rank to all wrappers of which the file does not say what they wrap, so that it needs not be known.

    Args:
        ranks: rank of each module of the result, by name in the file.
        keys: names of each module in patterns, by name in the file.

    Returns:
        The ranks; some may be higher than before.
    """
    unknown = [name for name in ranks if len(keys[name]) > 1]
    highest = max((ranks[name] for name in unknown), default=0)
    return {name: highest if name in unknown else rank for name, rank in ranks.items()}


def merge_configs(sites: Sequence[Site], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Make the config of a merged LoRA: one alpha, and patterns of ranks only where they differ.

    The scaling of a module is ``lora_alpha / rank``, which readers that know no ``alpha_pattern`` and no
    ``use_rslora`` compute too; so it is not 1 where ranks differ, and B has the rest. With DoRA and with a bias of
    B it is 1 in every module, by a pattern of alphas.

    Args:
        sites: the adapters; what they share is taken from the first one.
        ranks: rank of each module of the result, by name in the file.

    Returns:
        What adapter_config.json is to hold.
    """
    config = dict(sites[0].config)
    located = {f.module: f.keys for s in sites for f in s.modules.values()}
    keys = {name: located.get(name, (name.removeprefix(PREFIX),)) for name in ranks}
    unknown = [rank for name, rank in ranks.items() if len(keys[name]) > 1]
    known = {keys[name][0]: rank for name, rank in ranks.items() if len(keys[name]) == 1}
    common = Counter(unknown or known.values()).most_common(1)[0][0] if ranks else config.get("r", 1)
    others = {key: rank for key, rank in known.items() if rank != common}
    config |= {"r": common, "lora_alpha": common, "use_rslora": False, "init_lora_weights": True}
    config |= {"rank_pattern": others, "alpha_pattern": {}, "inference_mode": True}
    if any(match_pattern(sites[0].path, config, "rank_pattern", n, common) != r for n, r in known.items()):
        config["rank_pattern"] = {"^" + name.replace(".", r"\."): rank for name, rank in others.items()}
    if any(s.config.get("lora_bias") for s in sites):
        config["lora_bias"] = True
    if config.get("use_dora") or config.get("lora_bias"):
        config["alpha_pattern"] = dict(config["rank_pattern"])
    return config | _merge_targets(sites, located)


def _merge_targets(sites: Sequence[Site], located: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return which modules and parameters the result has, where the sites' configs differ in it."""
    limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
    named: dict[str, Any] = {}
    if not _all_same(sites, ("target_parameters",)):
        named["target_parameters"] = sorted({n for s in sites for n in s.config.get("target_parameters") or []})
        named["lora_dropout"] = 0.0  # PEFT has none for parameters
    if not _all_same(sites, ("target_modules", *limits)):
        modules = {n.removeprefix(PREFIX) for n, keys in located.items() if keys == (n.removeprefix(PREFIX),)}
        named |= {"target_modules": sorted(modules), **dict.fromkeys(limits)}
    return named


def _all_same(sites: Sequence[Site], fields: Sequence[str]) -> bool:
    return all(
        _same(sites[0].config.get(field) or None, s.config.get(field) or None) for s in sites for field in fields
    )


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return sorted(map(str, left)) == sorted(map(str, right))
    return bool(left == right)


def choose_dtype(name: str, sites: Sequence[Site], dtype: str) -> str:
    """Choose the dtype to store a tensor in: as asked for, else what all sites have, else float32.

    Args:
        name: name of the tensor.
        sites: the adapters.
        dtype: what was asked for; empty if nothing was.

    Returns:
        The dtype's name.

    Raises:
        ConfigError: there is no such dtype.
    """
    if dtype:
        if dtype not in DTYPES:
            raise ConfigError("--dtype", dtype, f"one of {list(DTYPES)}")
        return dtype
    dtypes = {s.source.layout.by_name[name].dtype for s in sites if name in s.source.layout.by_name}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def list_means(sites: Sequence[Site], dtype: str, scaled: bool) -> list[TensorSpec]:
    """List the tensors that are averaged entry by entry.

    Args:
        sites: the adapters.
        dtype: dtype to store; empty is that of the adapters.
        scaled: whether a bias of B is scaled, as in LoRA; it is then stored in float32 unless a dtype is given.

    Returns:
        Their specs in the merged file, sorted by name.
    """
    specs = {t.name: t for s in sites for t in s.others}
    return [
        TensorSpec(
            name=name,
            shape=spec.shape,
            dtype=(dtype or "float32") if scaled and is_bias(name) else choose_dtype(name, sites, dtype),
            group=group_of(name),
        )
        for name, spec in sorted(specs.items())
    ]


def write_adapter(out: Path, result: MergedAdapter, sites: Sequence[Site], weights: Floats) -> int:
    """Write the folder of a merged adapter; means are computed slice by slice.

    Args:
        out: folder to write.
        result: what to write.
        sites: the adapters, for the means.
        weights: shape (sites,), float64; they add up to 1.

    Returns:
        The number of bytes of the weights file.

    Raises:
        ConfigError: ``out`` is a file, or the disk is full.
        NonFiniteError: a tensor of a site is not finite.
    """
    with Sink(out / WEIGHTS_FILE, result.layout, {"format": "pt"}) as sink:
        for name, values in result.factors.items():
            sink.write(TensorSlice(spec=result.layout.by_name[name]), _check_finite(name, values))
        for slices in split_layout(Layout(tuple(result.means))) if result.means else []:
            for piece in slices:
                sink.write(piece, compute_mean(piece, sites, weights))
    part_file = out / f"{CONFIG_FILE}.part"
    part_file.write_text(json.dumps(result.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part_file, out / CONFIG_FILE)
    return (out / WEIGHTS_FILE).stat().st_size


def _check_finite(name: str, values: Array) -> Array:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"merged: {name}: contains NaN or infinity: values are too large for float32")
    return values


def compute_mean(piece: TensorSlice, sites: Sequence[Site], weights: Floats) -> Array:
    """Compute the weighted mean of a slice.

    Args:
        piece: which rows of which tensor.
        sites: the adapters. A bias of B counts with the scaling of its module; a missing one counts as zero.
        weights: shape (sites,), float64; they add up to 1.

    Returns:
        The mean, float32, of the shape of the slice.
    """
    whole = piece.whole
    stop = piece.start + piece.spec.shape[0] if piece.total else None
    total = np.zeros(piece.spec.shape)
    for site, weight in zip(sites, weights, strict=True):
        if whole.name not in site.source.layout.by_name:
            continue
        module = site.modules.get(whole.name.removesuffix(".lora_B.bias")) if is_bias(whole.name) else None
        scaling = module.scaling if module else 1.0
        total += weight * scaling * site.read(whole, piece.start, stop)
    return total.astype(np.float32)
