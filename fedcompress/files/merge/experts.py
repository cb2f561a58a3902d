"""Factors of several experts lie in one tensor: they are told apart here, and put together again.

PEFT wraps a parameter that ``target_parameters`` names in a ``ParamWrapper`` (peft/tuners/lora/layer.py). That of a
parameter of shape (experts, ., .) has A of shape (experts * rank, columns), in which the expert is the slowest index,
and B of shape (rows, rank * experts), in which it is the fastest. Several parameters of one module are wrapped in
turn, the first one innermost; names in the file have one ``base_layer`` for each wrapper around.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedcompress.files.merge.targets import targets_module
from fedcompress.merging.base import Floats
from fedcompress.types import Array

INNER = ".base_layer"  # in the name of a module, for each wrapper that is around it
# Names of parameters in the order in which the models of transformers register them.
ORDER = (
    *("gate_proj", "gate_up_proj", "up_proj", "gate_up_proj_bias", "w1", "v1"),
    *("down_proj", "w2", "down_proj_bias", "weight"),
)


def find_parameters(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Find which parameter each wrapper is of.

    Args:
        config: an adapter_config.json.
        modules: names of the modules that have factors, without the prefix of PEFT's files.

    Returns:
        By module that is a wrapper, the parameter's name in the base model; several names, where the file does not
        say which of them it is.
    """
    targets = config.get("target_parameters") or []
    levels: dict[str, list[str]] = {}  # by module that is wrapped: names of its wrappers, the outermost first
    for module in sorted(modules) if targets else []:
        owner = module
        while owner.endswith(INNER):
            owner = owner.removesuffix(INNER)
        if owner != module or not targets_module(config, module):
            levels.setdefault(owner, []).append(module)
    found: dict[str, tuple[str, ...]] = {}
    for owner, wrappers in levels.items():
        names = _find_names(owner, targets, len(wrappers))
        keys = [f"{owner}.{name}" for name in names]
        if len(names) == len(wrappers) and (len(names) == 1 or set(names) <= set(ORDER)):
            if len(keys) > 1:
                keys.sort(key=lambda key: ORDER.index(key.rpartition(".")[2]))
            inner_first = sorted(wrappers, key=len, reverse=True)
            found |= {module: (key,) for module, key in zip(inner_first, keys, strict=True)}
        else:
            found |= {module: tuple(sorted(keys)) for module in wrappers}
    return found


def _find_names(owner: str, targets: Sequence[str], count: int) -> list[str]:
    """Return the names of parameters that a module may have, by targets with a module before those without."""
    split = [target.rpartition(".") for target in sorted(set(targets))]
    named = [name for place, _, name in split if place and (owner == place or owner.endswith(f".{place}"))]
    bare = [name for place, _, name in split if not place]
    return sorted(set(named)) if len(set(named)) >= count else sorted({*named, *bare})


def select_a(stacked: Array, expert: int, experts: int) -> Array:
    """Select the A of one expert.

    Args:
        stacked: shape (experts * rank, columns).
        expert: number of the expert, from 0.
        experts: number of experts.

    Returns:
        A view, shape (rank, columns).
    """
    part: Array = stacked.reshape(experts, -1, stacked.shape[1])[expert]
    return part


def select_b(stacked: Array, expert: int, experts: int) -> Array:
    """Select the B of one expert, or some rows of it.

    Args:
        stacked: shape (rows, rank * experts).
        expert: number of the expert, from 0.
        experts: number of experts.

    Returns:
        A view, shape (rows, rank).
    """
    part: Array = stacked.reshape(stacked.shape[0], -1, experts)[:, :, expert]
    return part


def stack_factors(pairs: Sequence[tuple[Array | Floats, Array | Floats]], rank: int) -> tuple[Floats, Floats]:
    """Put the factors of all experts into two tensors, as PEFT has them.

    Args:
        pairs: A (own rank, columns) and B (rows, own rank) of each expert, in order.
        rank: rank of the result, no less than that of any expert; what an expert lacks is filled up with zeros.

    Returns:
        A, shape (experts * rank, columns), and B, shape (rows, rank * experts), float64.
    """
    experts = len(pairs)
    a = np.zeros((experts, rank, pairs[0][0].shape[1]))
    b = np.zeros((pairs[0][1].shape[0], rank, experts))
    for expert, (own_a, own_b) in enumerate(pairs):
        a[expert, : own_a.shape[0]] = own_a
        b[:, : own_b.shape[1], expert] = own_b
    return a.reshape(experts * rank, -1), b.reshape(-1, rank * experts)
