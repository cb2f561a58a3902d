"""The rule ``lora-procrustes`` truncates the exact mean product and turns its factors towards the published ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Floats, Modular, Module
from fedcompress.merging.lowrank import list_terms, truncate


@dataclass(frozen=True, kw_only=True)
class LoraProcrustes(Modular):
    """The rule takes balanced singular value factors B, A of the mean product and turns them by an orthogonal Q.

    With ``M = sum_i w_i B_i A_i``::

        Q = argmin_Q |Q A - A_published|,   A' = Q A,   B' = B Q^T

    ``Q = U V^T`` for the singular vectors of ``A_published A^T`` (Schönemann 1966, orthogonal Procrustes). The product
    is that of ``lora-svd``, which has the least error of the rank. Q undoes the turn of the gauge but not its scale: A
    is as large as B, whatever the published ones were.

    Examples:
        >>> from fedcompress.merging import merge_factors, parse_rule
        >>> a, b = merge_factors(parse_rule("lora-procrustes"), [([[-1, 0]], [[-2]]), ([[-3, 0]], [[-4]])])
        >>> print((b @ a).round(2), a[0, 0] < 0)
        [[7. 0.]] True
    """

    name: ClassVar[str] = "lora-procrustes"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Return factors of the published rank, near the published A."""
        shape = module.b0.shape[0], module.a0.shape[1]
        truncation = truncate(list_terms(module), shape, module.a0.shape[0])
        u, _, v = np.linalg.svd(module.a0 @ truncation.a.T)
        turn = u @ v
        return turn @ truncation.a, truncation.b @ turn.T
