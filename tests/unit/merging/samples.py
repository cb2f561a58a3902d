"""Tensors that are hard on merge rules, and short ways to merge them."""

from __future__ import annotations

import numpy as np

from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.types import Layout, Tensors, TensorSpec, zeros

KINDS = ("normal", "ternary", "half-ternary", "constant", "zero", "two", "one", "empty", "huge", "tiny", "mixed")


def sample(kind: str, sites: int, seed: int = 0) -> list[np.ndarray]:
    """One tensor of each site, float32."""
    g = np.random.default_rng([KINDS.index(kind), sites, seed])
    size = {"two": 2, "one": 1, "empty": 0}.get(kind, 64)
    made = []
    for _ in range(sites):
        value = g.standard_normal(size)
        match kind:
            case "ternary":
                value = 0.5 * np.sign(value) * (np.abs(value) > 1)
            case "half-ternary":
                value = 0.5 * np.sign(value) * (g.permutation(size) < size // 2)
            case "constant":
                value = np.full(size, float(g.integers(-2, 3)))
            case "zero":
                value = np.zeros(size)
            case "huge":
                value = value * 1e37
            case "tiny":
                value = value * 1e-37
            case "mixed":
                value = value * 10.0 ** g.integers(-30, 31, size)
        made.append(value.astype(np.float32))
    return made


def layout_of(update: Tensors) -> Layout:
    return Layout(tuple(TensorSpec(name=n, shape=v.shape) for n, v in update.items()))


def merged(rule: str, updates: list[Tensors], weights: list[float], round_: int = 1) -> Tensors:
    layout = layout_of(updates[0])
    return Merger(rule=parse_rule(rule), layout=layout).merge(
        zeros(layout), weights, InMemoryUpdates(layout, updates), round_=round_
    )


def merged_tensor(rule: str, values: list[np.ndarray], weights: list[float]) -> np.ndarray:
    return merged(rule, [{"w": v} for v in values], weights)["w"]
