"""The exact mean product, with factors turned towards the published ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Floats, Module
from fedcompress.merging.lowrank import terms_of, truncated


@dataclass(frozen=True, kw_only=True)
class LoraProcrustes:
    """Balanced singular value factors B, A of ``M = sum_i w_i B_i A_i``, turned by an orthogonal Q::

        Q = argmin_Q |Q A - A_published|,   A' = Q A,   B' = B Q^T

    Q = U V^T for the singular vectors of ``A_published A^T`` (Schönemann 1966, orthogonal Procrustes).
    The product is that of ``lora-svd``, the least error of the rank. Q undoes the turn of the gauge but
    not its scale: A is as large as B, whatever the published ones were.
    """

    name: ClassVar[str] = "lora-procrustes"

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Factors of the published rank, near the published A."""
        shape = module.b0.shape[0], module.a0.shape[1]
        found = truncated(terms_of(module), shape, module.a0.shape[0])
        u, _, v = np.linalg.svd(module.a0 @ found.a.T)
        turn = u @ v
        return turn @ found.a, found.b @ turn.T
