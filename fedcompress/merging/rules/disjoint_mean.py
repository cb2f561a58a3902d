"""Mean over those sites that sent an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.updates import Updates


def senders(block: Block) -> Floats:
    """Weight of the sites whose entry is not zero, float64, shape (n,)."""
    total = np.zeros(block.values.shape[1])
    for weight, values in zip(block.weights, block.values, strict=True):
        total += weight * (values != 0)
    return total


@dataclass(frozen=True, kw_only=True)
class DisjointMean:
    """sum_i w_i * delta_i / sum of w_i over sites whose entry is not zero; 0 where all are.

    SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706) averages each entry over the peers whose top-k has it. A site
    cannot say that its entry is zero: what was not sent is missing, not small. With sparse updates this is up to
    1 / density larger than the mean, and entries that one site sent alone count in full.
    """

    name: ClassVar[str] = "disjoint-mean"

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The mean over senders, float64, shape (n,)."""
        total, share = weighted_sum(block), senders(block)
        return np.divide(total, share, out=np.zeros_like(total), where=share > 0)
