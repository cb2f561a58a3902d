"""Finds the scaling of LoRA modules, and writes it so that readers which know one alpha alone have it too."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.groups import PREFIX, group_of
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, Tensors

# Values of init_lora_weights that leave the base model as it is.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_B = re.compile(r"\.lora_(embedding_)?B(?=\.|$)")


def has_plain_start(config: Mapping[str, Any]) -> bool:
    """Return True if a LoRA config starts from factors that leave the base model as it is."""
    start = config.get("init_lora_weights", True)
    return any(start is known or (isinstance(start, str) and start == known) for known in _PLAIN_STARTS)


def find_keys(pattern: Mapping[str, Any], module: str) -> list[str]:
    """Find the keys of a pattern that match the end of a module's name, in order; PEFT takes the first.

    Args:
        pattern: a ``rank_pattern`` or ``alpha_pattern``.
        module: name of the module, without ``PREFIX``.

    Returns:
        The keys.

    Raises:
        ConfigError: a key is no regular expression.
    """
    found = []
    for key in pattern:
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                found.append(key)
        except re.error as error:
            raise ConfigError("pattern", key, f"must be a regular expression: {error}") from error
    return found


def match_pattern(path: Path, config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """Find a module's value in a pattern as PEFT does: that of the first key which matches the end of its name.

    Args:
        path: the adapter, for the message.
        config: its adapter_config.json.
        field: ``rank_pattern`` or ``alpha_pattern``.
        module: name of the module, without ``PREFIX``.
        default: the value if no key matches.

    Returns:
        The value.

    Raises:
        ConfigError: the pattern is none, or a key is no regular expression.
    """
    pattern = config.get(field) or {}
    if not isinstance(pattern, Mapping):
        raise ConfigError(f"{path}: {field}", pattern, "must be numbers by parts of names")
    try:
        keys = find_keys(pattern, module)
    except ConfigError as error:
        raise ConfigError(f"{path}: {field}", error.value, error.rule) from error
    return pattern[keys[0]] if keys else default


def write_one_alpha(
    config: Mapping[str, Any], layout: Layout, tensors: Mapping[str, Array]
) -> tuple[dict[str, Any], Layout, Tensors]:
    """Rewrite a LoRA so that the scaling of each module is ``lora_alpha / rank``, with B times what this misses.

    llama.cpp scales by that, whatever ``use_rslora`` and ``alpha_pattern`` say. Where all modules have one scaling
    times rank, no tensor changes. DoRA, biases of B, and parameters of several experts with ranks of their own
    are left as they are, and so is what has one alpha already.

    Args:
        config: an adapter_config.json.
        layout: names, shapes and dtypes of ``tensors``.
        tensors: the state, float32 by name.

    Returns:
        Config, layout and tensors. A B that is multiplied is stored in float32, so that it is not rounded again.
    """
    is_done = not (config.get("use_rslora") or config.get("alpha_pattern"))
    is_patterned = bool(config.get("alpha_pattern") or config.get("rank_pattern"))
    is_left = config.get("use_dora") or config.get("lora_bias") or (config.get("target_parameters") and is_patterned)
    products = {} if is_done or is_left or config.get("peft_type") != "LORA" else _find_products(config, layout)
    if not products:
        return dict(config), layout, dict(tensors)
    alpha = Counter(products.values()).most_common(1)[0][0]
    factors = {name: product / alpha for name, product in products.items() if product != alpha}
    scaled = {n: (v * np.float64(factors[n])).astype(np.float32) if n in factors else v for n, v in tensors.items()}
    specs = [replace(t, dtype="float32") if t.name in factors else t for t in layout.tensors]
    whole_alpha = int(alpha) if alpha == int(alpha) else alpha
    unified = {**config, "use_rslora": False, "lora_alpha": whole_alpha, "alpha_pattern": {}}
    return unified, Layout(tuple(specs)), scaled


def _find_products(config: Mapping[str, Any], layout: Layout) -> dict[str, float]:
    """Return the scaling times the rank of each module, by the name of its B: the alpha that says it."""
    products = {}
    for spec in layout.tensors:
        if group_of(spec.name) == "lora_b" and len(spec.shape) > 1:
            module = _B.split(spec.name)[0].removeprefix(PREFIX)
            alpha = match_pattern(Path(), config, "alpha_pattern", module, config["lora_alpha"])
            rank = match_pattern(Path(), config, "rank_pattern", module, config["r"])
            products[spec.name] = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return products
