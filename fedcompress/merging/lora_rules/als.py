"""The rule ``lora-als`` finds LoRA factors by alternating least squares, starting from the means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lora_rules.ridge import average_factors, fit_left, multiply_left, multiply_right


@dataclass(frozen=True, kw_only=True)
class LoraAls(Modular):
    """The rule fits B and A in turns to the mean product, each held to its mean by a ridge.

    From the means A' and B', ``sweeps`` times, with ``M = sum_i w_i B_i A_i``::

        B <- argmin_X |X A - M|^2 + ridge trace(A A^T)/r |X - B'|^2
        A <- argmin_X |B X - M|^2 + ridge trace(B^T B)/r |X - A'|^2

    The result is nearer to M than that of ``lora-ridge``, which is its first half sweep, and farther from the gauge
    of the published state with each sweep. Measured with the transform codec at 50 times, 6 sweeps, 8 rounds:
    accuracy .773 against .832 of ``lora-ridge``. While B is near zero, the fit of A divides by a tiny ``B^T B``. M is
    never formed. Merging a single update with weight 1 returns that update.

    Args:
        sweeps: number of times that both factors are fitted, from 1 to 100.
        ridge: strength of the pull to the means, relative to the other factor, from 1e-9 to 1e6.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("lora-als"), [([[1, 0]], [[2]]), ([[0, 1]], [[4]])])
        >>> print((b @ a).round(2))
        [[1. 2.]]
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
        """Return A and B after the last sweep."""
        mean_a, mean_b = average_factors(module)
        a, b = mean_a, mean_b
        if len(module.factors) == 1:
            return a, b
        for _ in range(self.sweeps):
            b = fit_left(multiply_right(module, a.T), a, mean_b, self.ridge)
            a = fit_left(multiply_left(b.T, module).T, b.T, mean_a.T, self.ridge).T
        return a, b
