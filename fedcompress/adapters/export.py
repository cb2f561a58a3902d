"""Exports a published state as a stock PEFT folder, which needs neither our changed base nor our constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.constants import select_initial_factors
from fedcompress.adapters.folder import save_adapter
from fedcompress.adapters.scaling import write_one_alpha
from fedcompress.adapters.template import Template
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout

# Projections that all layers share. PEFT saves them if the config says so; otherwise a reader draws them again.
_PROJECTIONS = tuple(f"{kind}_{side}" for kind in ("vera", "pvera", "randlora") for side in "AB")


def export_adapter(folder: Path, template: Template, state: Mapping[str, Array], constants: Mapping[str, Any]) -> None:
    """Write a state to a stock PEFT folder.

    The base that sites train on may be reduced by initial factors: W - s B0 A0, with the scaling s. They are put
    beside the factors that are trained, with the other sign, at twice the rank, so that the folder is for the base
    as it was: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]. Constants that PEFT saves are saved. The scaling of LoRA
    is written with one alpha, see ``write_one_alpha``.

    Args:
        folder: where to write.
        template: what the run started from.
        state: float32 values by name, as in the template's layout.
        constants: numpy arrays by name, as in the template's constants.safetensors.

    Raises:
        ConfigError: some factors of LoRA have initial factors and others have none.
    """
    adapter = template.adapter
    initial_factors = select_initial_factors(constants)
    config = {**adapter.config, "inference_mode": True}
    saved = {n: constants[n] for n in template.saved}
    last_names = {n.removesuffix(".default").rpartition(".")[2]: v for n, v in constants.items()}
    projections = {f"base_model.{n}": v for n, v in last_names.items() if n in _PROJECTIONS}
    if projections:
        config["save_projection"] = True
        saved |= projections
    if "mask_type" in config:
        config["mask_type"] = "random"  # the mask itself is saved
    if not initial_factors:
        save_adapter(folder, *write_one_alpha(config, adapter.layout, state), saved)
        return
    tensors = dict(state)
    for name, initial in initial_factors.items():
        if ".lora_A." in name:
            tensors[name] = np.concatenate([state[name], initial], axis=0)
        else:
            tensors[name] = np.concatenate([state[name], -initial], axis=1)
    for spec in adapter.layout.tensors:
        if spec.group in ("lora_a", "lora_b") and spec.name not in initial_factors:
            rule = "must start as the others do: at twice the rank there is nothing to add"
            raise ConfigError("adapter", spec.name, rule)
    shapes = {n: tuple(v.shape) for n, v in tensors.items()}
    layout = _replace_shapes(adapter.layout, shapes)
    save_adapter(folder, *write_one_alpha(_double_rank(config), layout, tensors), saved)


def _double_rank(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a LoRA config of twice the rank whose scaling, alpha over rank or over its root, is the same."""
    alpha_factor = math.sqrt(2) if config.get("use_rslora") else 2
    ranks = {k: 2 * v for k, v in (config.get("rank_pattern") or {}).items()}
    alphas = {k: v * alpha_factor for k, v in (config.get("alpha_pattern") or {}).items()}
    doubled = {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * alpha_factor}
    return {**config, **doubled, "rank_pattern": ranks, "alpha_pattern": alphas}


def _replace_shapes(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    return Layout(tuple(replace(t, shape=shapes[t.name]) for t in layout.tensors))
