"""RoLoRA (Chen et al. 2024, arXiv:2409.02346): one factor a round, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lora_rules.ridge import mean_factors


@dataclass(frozen=True, kw_only=True)
class RoLoRA:
    """Odd rounds take the mean of B and leave A as published; even rounds the other way round.

    Exact, if the sites train only that factor in that round: the product is linear in it. What a
    site changed in the other factor is dropped.
    """

    name: ClassVar[str] = "rolora"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """The mean of one factor, the published other one."""
        a, b = mean_factors(module)
        return (module.a0.copy(), b) if round_ % 2 else (a, module.b0.copy())
