"""LoRA-FAIR (Bian et al. 2024, arXiv:2411.14961): mean factors, and a correction of B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lora_rules.ridge import mean_factors, times_mean


@dataclass(frozen=True, kw_only=True)
class LoraFair:
    """For each module, with the means A' and B' and ``M = sum_i w_i B_i A_i``::

        dB = argmin |(B' + dB) A' - M|^2 + penalty |dB|^2
           = (M - B' A') A'^T (A' A'^T + penalty I)^-1

    Returns A' and ``B' + dB``. The distance is the squared Frobenius norm, which has this closed form,
    instead of gradient steps on a similarity. It is ``lora-ridge`` with a penalty that does not scale
    with A: 0.01 is small beside A of Kaiming's scale, and large beside a small A.
    """

    name: ClassVar[str] = "lora-fair"
    penalty: float = 0.01

    def __post_init__(self) -> None:
        if not 1e-9 <= self.penalty <= 1e6:
            raise ConfigError("rule.lora-fair.penalty", self.penalty, "must be from 1e-9 to 1e6")

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Mean A, corrected mean B."""
        a, b = mean_factors(module)
        if len(module.factors) == 1:
            return a, b
        gram = a @ a.T
        off = times_mean(module, a.T) - b @ gram
        # In the eigenvectors of the gram: a penalty below its rounding must not make it singular.
        values, turn = np.linalg.eigh(gram)
        return a, b + (off @ turn) / (np.maximum(values, 0) + self.penalty) @ turn.T
