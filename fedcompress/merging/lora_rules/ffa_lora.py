"""FFA-LoRA (Sun et al. 2024, arXiv:2403.12313): A is frozen, B is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lora_rules.ridge import mean_factors


@dataclass(frozen=True, kw_only=True)
class FFA:
    """``A' = A`` as published, ``B' = sum_i w_i B_i``.

    Exact, if the sites freeze A: ``sum_i w_i B_i A = B' A``. What a site did change in A is dropped.
    """

    name: ClassVar[str] = "ffa"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Published A, mean B."""
        return module.a0.copy(), mean_factors(module)[1]
