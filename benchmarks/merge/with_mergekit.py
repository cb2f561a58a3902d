"""mergekit's steps on the tensors of ``speed``, run by an interpreter that has mergekit: prints seconds as JSON.

    python benchmarks/merge/with_mergekit.py

Sparsification and consensus are mergekit's own functions; sums are as its task arithmetic does them.
"""

from __future__ import annotations

import json
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods.generalized_task_arithmetic import get_mask
from mergekit.sparsify import SparsificationMethod, sparsify

SITES = 8
TENSORS = 8
SHAPE = (1000, 1250)
DENSITY = 0.2
REPEATS = 3


def merged(deltas: list[Any], method: SparsificationMethod | None, consensus: bool, **options: float) -> Any:
    """One tensor, of all sites."""
    if method is not None:
        deltas = [sparsify(d, density=DENSITY, method=method, **options) for d in deltas]
    weights = torch.full((len(deltas), 1, 1), 1 / len(deltas))
    stack = torch.stack(deltas)
    if not consensus:
        return (stack * weights).sum(0)
    mask = get_mask(stack, method="sum", mask_dtype=stack.dtype)
    divisor = (weights * mask).sum(0)
    divisor[divisor == 0] = 1
    return (stack * weights * mask).sum(0) / divisor


METHODS: dict[str, Any] = {
    "mean": (None, False, {}),
    "ties": (SparsificationMethod.magnitude, True, {}),
    "dare": (SparsificationMethod.random, False, {}),
    "dare-ties": (SparsificationMethod.random, True, {}),
    "magnitude-prune": (SparsificationMethod.magnitude, False, {}),
    "breadcrumbs": (SparsificationMethod.magnitude_outliers, False, {"gamma": 0.01}),
}


def main() -> None:
    """Seconds of each method over all tensors."""
    generators = [np.random.default_rng(site) for site in range(SITES)]
    updates = [[torch.from_numpy(g.standard_normal(SHAPE, np.float32)) for _ in range(TENSORS)] for g in generators]
    found = {}
    for name, (method, consensus, options) in METHODS.items():
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            for number in range(TENSORS):
                merged([u[number] for u in updates], method, consensus, **options)
            times.append(time.perf_counter() - started)
        found[name] = median(times)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
