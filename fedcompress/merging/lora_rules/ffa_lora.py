"""FFA-LoRA freezes A and averages B (Sun et al. 2024, arXiv:2403.12313)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lora_rules.ridge import average_factors


@dataclass(frozen=True, kw_only=True)
class FFA(Modular):
    """The rule leaves A as published and takes ``B' = sum_i w_i B_i``.

    It is exact if the sites freeze A: ``sum_i w_i B_i A = B' A``. What a site has changed in A all the same is
    dropped.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("ffa"), [([[1, 1]], [[2]]), ([[1, 1]], [[4]])])
        >>> print(a, b)
        [[1. 1.]] [[3.]]
    """

    name: ClassVar[str] = "ffa"
    requires_frozen_a: ClassVar[bool] = True

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return the published A and the mean B."""
        return module.a0.copy(), average_factors(module)[1]
