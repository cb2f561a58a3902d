"""The exact mean product, truncated to the published rank (as FlexLoRA, Bai et al. 2024, arXiv:2402.11505)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lowrank import terms_of, truncated


@dataclass(frozen=True, kw_only=True)
class LoraSvd:
    """Balanced singular value factors of ``M = sum_i w_i B_i A_i``: the least merge error of the rank.

    M is never formed. Least error is not best training under compression: the factors jump to another
    gauge in every round, and the downlink spends its bits on the jump. Measured with the transform
    codec at 50 times, 8 rounds: accuracy .763, against .835 of the mean of the factors, at a merge
    error of .01 to .05 against .08 to .03. Where B is zero at the start and sites send nothing, M is
    zero and so is A, which stops learning. Equal updates are returned as a product, not as factors.
    """

    name: ClassVar[str] = "lora-svd"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Balanced factors of the published rank; zero beyond the rank of M."""
        shape = module.b0.shape[0], module.a0.shape[1]
        found = truncated(terms_of(module), shape, module.a0.shape[0])
        return found.a, found.b
