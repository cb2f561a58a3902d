"""LoRA factors by alternating least squares from the means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lora_rules.ridge import fit_left, mean_factors, times_mean


def mean_times(left: Floats, module: Module) -> Floats:
    """``left (sum_i w_i B_i A_i)``, without the product of the factors."""
    total = np.zeros((left.shape[0], module.a0.shape[1]))
    for weight, (a, b) in zip(module.weights, module.factors, strict=True):
        total += weight * ((left @ b) @ a)
    return total


@dataclass(frozen=True, kw_only=True)
class LoraAls:
    """From the means A' and B', ``sweeps`` times with ``M = sum_i w_i B_i A_i``::

        B <- argmin_X |X A - M|^2 + ridge trace(A A^T)/r |X - B'|^2
        A <- argmin_X |B X - M|^2 + ridge trace(B^T B)/r |X - A'|^2

    Nearer to M than ``lora-ridge``, which is its first half sweep, and farther from the gauge of the
    published state with each sweep. Measured with the transform codec at 50 times, 6 sweeps, 8 rounds:
    accuracy .773 against .832 of ``lora-ridge``. While B is near zero, the fit of A divides by a tiny
    ``B^T B``. M is never formed. Merging a single update with weight 1 returns that update.
    """

    name: ClassVar[str] = "lora-als"
    sweeps: int = 6
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not 1 <= self.sweeps <= 100:
            raise ConfigError("rule.lora-als.sweeps", self.sweeps, "must be from 1 to 100")
        if not 1e-9 <= self.ridge <= 1e6:
            raise ConfigError("rule.lora-als.ridge", self.ridge, "must be from 1e-9 to 1e6")

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """A and B after the last sweep."""
        mean_a, mean_b = mean_factors(module)
        a, b = mean_a, mean_b
        for _ in range(self.sweeps if len(module.factors) > 1 else 0):
            b = fit_left(times_mean(module, a.T), a, mean_b, self.ridge)
            a = fit_left(mean_times(b.T, module).T, b.T, mean_a.T, self.ridge).T
        return a, b
