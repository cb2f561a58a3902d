"""FedIT takes the mean of A and the mean of B (Zhang et al. 2023, arXiv:2305.05644)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lora_rules.ridge import average_factors


@dataclass(frozen=True, kw_only=True)
class FedIT(Modular):
    """The rule is the baseline ``A' = sum_i w_i A_i``, ``B' = sum_i w_i B_i``: the same as ``mean`` on LoRA modules.

    ``B' A'`` is not the mean of the products: it has cross terms ``w_i w_j B_i A_j``. But it stays in the gauge of
    the published factors, where a compressed downlink is cheap.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("fedit"), [([[1, 0]], [[2]]), ([[0, 1]], [[4]])])
        >>> print(a, b)
        [[0.5 0.5]] [[3.]]
    """

    name: ClassVar[str] = "fedit"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return both means."""
        return average_factors(module)
