"""FedIT (Zhang et al. 2023, arXiv:2305.05644): the means of A and of B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lora_rules.ridge import mean_factors


@dataclass(frozen=True, kw_only=True)
class FedIT:
    """``A' = sum_i w_i A_i``, ``B' = sum_i w_i B_i``: the baseline, the same as ``mean`` on LoRA modules.

    ``B' A'`` is not the mean of the products: it has cross terms ``w_i w_j B_i A_j``. But it stays in
    the gauge of the published factors, where a compressed downlink is cheap.
    """

    name: ClassVar[str] = "fedit"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Both means."""
        return mean_factors(module)
