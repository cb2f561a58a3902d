"""The rule ``lora-ridge`` merges LoRA factors in the gauge of the published state: mean A, and B by ridge regression.

Other LoRA rules use its parts: the mean factors, products with the mean matrix that never form it, and the fit of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Modular, Module


def average_factors(module: Module) -> tuple[Floats, Floats]:
    """Return the weighted means of the sites' A and of their B, float64."""
    mean_a = np.zeros_like(module.a0)
    mean_b = np.zeros_like(module.b0)
    for weight, (a, b) in zip(module.weights, module.factors, strict=True):
        mean_a += weight * a
        mean_b += weight * b
    return mean_a, mean_b


def multiply_right(module: Module, right: Floats) -> Floats:
    """Return ``M right`` for the mean product ``M = sum_i w_i B_i A_i``, without forming M.

    ``right`` has shape (columns, n); the result has shape (rows, n).
    """
    total = np.zeros((module.b0.shape[0], right.shape[1]))
    for weight, (a, b) in zip(module.weights, module.factors, strict=True):
        total += weight * (b @ (a @ right))
    return total


def multiply_left(left: Floats, module: Module) -> Floats:
    """Return ``left M`` for the mean product ``M = sum_i w_i B_i A_i``, without forming M.

    ``left`` has shape (n, rows); the result has shape (n, columns).
    """
    total = np.zeros((left.shape[0], module.a0.shape[1]))
    for weight, (a, b) in zip(module.weights, module.factors, strict=True):
        total += weight * ((left @ b) @ a)
    return total


def fit_left(product: Floats, a: Floats, towards: Floats, ridge: float) -> Floats:
    """Solve ``argmin_X |X a - M|^2 + lam |X - towards|^2`` with ``lam = ridge * trace(a a^T) / rank``.

    Args:
        product: ``M a^T``, shape (rows, rank): M itself is not needed.
        a: shape (rank, columns).
        towards: what the ridge pulls X to, shape (rows, rank).
        ridge: strength of the pull, relative to the mean squared norm of the rows of ``a``.

    Returns:
        X, shape (rows, rank), float64; ``towards`` if ``a`` is zero.
    """
    gram = a @ a.T
    lam = ridge * float(np.trace(gram)) / max(gram.shape[0], 1)
    if lam <= 0:
        return towards
    solved: Floats = np.linalg.solve(gram + lam * np.eye(gram.shape[0]), (product + lam * towards).T).T
    return solved


@dataclass(frozen=True, kw_only=True)
class LoraRidge(Modular):
    """The rule takes the mean of A, and the B that fits the mean product on it by ridge least squares.

    For each module, with ``A_i = A + dA_i``, ``B_i = B + dB_i`` and ``M = sum_i w_i B_i A_i``::

        A' = sum_i w_i A_i
        B' = argmin_X |X A' - M|^2 + lam |X - sum_i w_i B_i|^2
           = (M A'^T + lam mean(B)) (A' A'^T + lam I)^-1,   lam = ridge * trace(A' A'^T) / r

    M is never formed: ``M A'^T = sum_i w_i B_i (A_i A'^T)``. The mean of A keeps the gauge of the published state,
    which matters more to a compressed downlink than the last bit of merge error. The ridge pulls towards the mean of
    B, not towards zero, so that merging a single update with weight 1 returns that update. Memory: the factors of one
    module from all sites.

    Args:
        ridge: strength of the pull relative to A', from 1e-9 to 1e6.

    Raises:
        ConfigError: ``ridge`` is out of range.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("lora-ridge"), [([[1, 0]], [[2]]), ([[1, 2]], [[4]])])
        >>> print(a, b.round(2))
        [[1. 1.]] [[3.5]]
    """

    name: ClassVar[str] = "lora-ridge"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not 1e-9 <= self.ridge <= 1e6:  # less does not regularise in float64 when A' lacks rank
            raise ConfigError("rule.lora-ridge.ridge", self.ridge, "must be from 1e-9 to 1e6")

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return the mean A, and the B that fits the mean product on it."""
        a, b = average_factors(module)
        if len(module.factors) == 1:
            return a, b
        return a, fit_left(multiply_right(module, a.T), a, b, self.ridge)
