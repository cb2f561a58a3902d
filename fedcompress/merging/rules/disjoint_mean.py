"""The disjoint mean averages each entry over those sites that sent it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.rules.mean import shrunk_mean


@dataclass(frozen=True, kw_only=True)
class DisjointMean(Stateless):
    """The rule divides ``sum_i w_i * delta_i`` by the weight of the sites whose entry is not zero; 0 where all are.

    SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706) averages each entry over the peers whose top-k has it. A site
    cannot say that its entry is zero: what was not sent is missing, not small. With sparse updates the result is up
    to 1 / density times larger than the mean, and entries that one site sent alone count in full. This is
    ``sparse-mean`` with lambda 1.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("disjoint-mean"), [[4, 4, 0], [8, 0, 0]], weights=[3, 1]))
        [5. 4. 0.]
    """

    name: ClassVar[str] = "disjoint-mean"

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the mean over the senders of each entry, float64, shape (n,)."""
        return shrunk_mean(block, 1.0)
