"""RoLoRA merges one factor in each round, in turns (Chen et al. 2024, arXiv:2409.02346)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lora_rules.ridge import average_factors


@dataclass(frozen=True, kw_only=True)
class RoLoRA(Modular):
    """The rule takes the mean of B and leaves A as published in odd rounds, and does the opposite in even rounds.

    It is exact if the sites train only that factor in that round, because the product is linear in it. What a site
    has changed in the other factor is dropped.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("rolora"), [([[1, 0]], [[2]]), ([[0, 1]], [[2]])], round_=2)
        >>> print(a, b)
        [[0.5 0.5]] [[2.]]
    """

    name: ClassVar[str] = "rolora"
    needs_rounds: ClassVar[bool] = True

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return the mean of one factor and the other as published."""
        a, b = average_factors(module)
        if round_ % 2:
            return module.a0.copy(), b
        return a, module.b0.copy()
