"""LoRA factors merged in the gauge of the published state: mean A, ridge least-squares B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Module


def mean_factors(module: Module) -> tuple[Floats, Floats]:
    """Weighted means of A and of B."""
    a, b = np.zeros_like(module.a0), np.zeros_like(module.b0)
    for weight, (own_a, own_b) in zip(module.weights, module.factors, strict=True):
        a += weight * own_a
        b += weight * own_b
    return a, b


def times_mean(module: Module, right: Floats) -> Floats:
    """``(sum_i w_i B_i A_i) right``, without the product of the factors."""
    total = np.zeros((module.b0.shape[0], right.shape[1]))
    for weight, (a, b) in zip(module.weights, module.factors, strict=True):
        total += weight * (b @ (a @ right))
    return total


def fit_left(product: Floats, a: Floats, towards: Floats, ridge: float) -> Floats:
    """``argmin_X |X a - M|^2 + lam |X - towards|^2`` for ``product = M a^T``, ``lam = ridge * trace(a a^T) / rank``."""
    gram = a @ a.T
    lam = ridge * float(np.trace(gram)) / max(gram.shape[0], 1)
    if lam <= 0:
        return towards
    solved: Floats = np.linalg.solve(gram + lam * np.eye(gram.shape[0]), (product + lam * towards).T).T
    return solved


@dataclass(frozen=True, kw_only=True)
class LoraRidge:
    """For each module, with A_i = A + dA_i, B_i = B + dB_i and M = sum_i w_i B_i A_i::

        A' = sum_i w_i A_i
        B' = argmin_X |X A' - M|^2 + lam |X - sum_i w_i B_i|^2
           = (M A'^T + lam mean(B)) (A' A'^T + lam I)^-1,   lam = ridge * trace(A' A'^T) / r

    M is never formed: M A'^T = sum_i w_i B_i (A_i A'^T). The mean of A keeps the gauge of
    the published state, which matters more to a compressed downlink than the last bit of
    merge error. The ridge pulls towards the mean of B, not towards zero, so that merging a
    single update with weight 1 returns that update. Memory: O(sites) for the factors of one module.
    """

    name: ClassVar[str] = "lora-ridge"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not 1e-9 <= self.ridge <= 1e6:  # less does not regularise in float64 when A' lacks rank
            raise ConfigError("rule.lora-ridge.ridge", self.ridge, "must be from 1e-9 to 1e6")

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Mean A, and B that fits the mean product on it."""
        a, b = mean_factors(module)
        return a, b if len(module.factors) == 1 else fit_left(times_mean(module, a.T), a, b, self.ridge)
