"""A published state as a stock PEFT folder, which needs neither our base nor our constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX
from fedcompress.adapters.folder import save_adapter
from fedcompress.adapters.template import Template
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout

# Shared projections, which PEFT saves if the config says so; without them a reader draws them again.
_PROJECTIONS = tuple(f"{kind}_{side}" for kind in ("vera", "pvera", "randlora") for side in "AB")


def export_adapter(folder: Path, template: Template, state: Mapping[str, Array], constants: Mapping[str, Any]) -> None:
    """Write the folder.

    Factors that were taken out of the base are put beside those that are trained, with the other sign, at twice
    the rank: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]. Constants that PEFT saves are saved.
    """
    adapter = template.adapter
    starts = {
        n.removesuffix(INITIAL_FACTOR_SUFFIX): v for n, v in constants.items() if n.endswith(INITIAL_FACTOR_SUFFIX)
    }
    config = {**adapter.config, "inference_mode": True}
    saved = {n: constants[n] for n in template.saved}
    tails = {n.removesuffix(".default").rpartition(".")[2]: v for n, v in constants.items()}
    projections = {f"base_model.{n}": v for n, v in tails.items() if n in _PROJECTIONS}
    if projections:
        config["save_projection"] = True
        saved |= projections
    if "mask_type" in config:
        config["mask_type"] = "random"  # the places are saved
    if not starts:
        save_adapter(folder, config, adapter.layout, state, saved)
        return
    tensors = dict(state)
    for name, start in starts.items():
        sides = [state[name], start] if ".lora_A." in name else [state[name], -start]
        tensors[name] = np.concatenate(sides, axis=0 if ".lora_A." in name else 1)
    alone = [t.name for t in adapter.layout.tensors if t.group in ("lora_a", "lora_b") and t.name not in starts]
    if alone:
        raise ConfigError("adapter", alone[0], "must start as the others do: at twice the rank there is nothing to add")
    shapes = {n: tuple(v.shape) for n, v in tensors.items()}
    save_adapter(folder, _doubled(config), _reshaped(adapter.layout, shapes), tensors, saved)


def _doubled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A LoRA config at twice the rank, with the scaling that it has."""
    grown = math.sqrt(2) if config.get("use_rslora") else 2
    ranks = {k: 2 * v for k, v in (config.get("rank_pattern") or {}).items()}
    alphas = {k: v * grown for k, v in (config.get("alpha_pattern") or {}).items()}
    once = {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * grown}
    return {**config, **once, "rank_pattern": ranks, "alpha_pattern": alphas}


def _reshaped(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    return Layout(tuple(replace(t, shape=shapes[t.name]) for t in layout.tensors))
