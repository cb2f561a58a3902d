"""The rule ``lora-svd`` truncates the exact mean product (as FlexLoRA, Bai et al. 2024, arXiv:2402.11505)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lowrank import list_terms, truncate


@dataclass(frozen=True, kw_only=True)
class LoraSvd(Modular):
    """The rule takes balanced singular value factors of ``M = sum_i w_i B_i A_i``: the least merge error of the rank.

    M is never formed. The least error is not the best training under compression: the factors jump to another gauge
    in every round, and the downlink spends its bits on the jump. Measured with the transform codec at 50 times, 8
    rounds: accuracy .763, against .835 of the mean of the factors, at a merge error of .01 to .05 against .08 to .03.
    Where B is zero at the start and sites send nothing, M is zero and so is A, which stops learning. Equal updates are
    returned as a product, not as factors.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("lora-svd"), [([[1, 0]], [[2]]), ([[3, 0]], [[4]])])
        >>> print((b @ a).round(2))
        [[7. 0.]]
    """

    name: ClassVar[str] = "lora-svd"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return balanced factors of the published rank; they are zero beyond the rank of M."""
        shape = module.b0.shape[0], module.a0.shape[1]
        truncation = truncate(list_terms(module), shape, module.a0.shape[0])
        return truncation.a, truncation.b
