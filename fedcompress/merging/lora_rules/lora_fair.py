"""LoRA-FAIR takes the mean factors and corrects the mean of B (Bian et al. 2024, arXiv:2411.14961)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lora_rules.ridge import average_factors, multiply_right


@dataclass(frozen=True, kw_only=True)
class LoraFair(Modular):
    """The rule adds to the mean of B the penalised least-squares correction towards the mean product.

    For each module, with the means A' and B' and ``M = sum_i w_i B_i A_i``::

        dB = argmin |(B' + dB) A' - M|^2 + penalty |dB|^2
           = (M - B' A') A'^T (A' A'^T + penalty I)^-1

    The result is A' and ``B' + dB``. The distance is the squared Frobenius norm, which has this closed form, where
    the paper takes gradient steps on a similarity. It is ``lora-ridge`` with a penalty that does not scale with A:
    0.01 is small beside an A of Kaiming's scale, and large beside a small A.

    Args:
        penalty: weight of the squared norm of the correction, from 1e-9 to 1e6.

    Raises:
        ConfigError: ``penalty`` is out of range.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("lora-fair(penalty=0.5)"), [([[1, 0]], [[2]]), ([[1, 2]], [[4]])])
        >>> print(a, b.round(3))
        [[1. 1.]] [[3.4]]
    """

    name: ClassVar[str] = "lora-fair"
    penalty: float = 0.01

    def __post_init__(self) -> None:
        if not 1e-9 <= self.penalty <= 1e6:
            raise ConfigError("rule.lora-fair.penalty", self.penalty, "must be from 1e-9 to 1e6")

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return the mean A and the corrected mean B."""
        a, b = average_factors(module)
        if len(module.factors) == 1:
            return a, b
        gram = a @ a.T
        residual = multiply_right(module, a.T) - b @ gram
        # In the eigenvectors of the gram, so that a penalty below its rounding does not make it singular.
        values, vectors = np.linalg.eigh(gram)
        return a, b + (residual @ vectors) / (np.maximum(values, 0) + self.penalty) @ vectors.T
