"""Merge rules that need more than updates: Fisher diagonals, Gram matrices, dense weights or unlabelled batches.

They are functions and no part of a round, since no message carries what they need. ``DATA_RULES`` is the one table.
Only ``collect_fisher``, ``collect_grams``, ``expert`` and ``alignment`` need torch.
"""

from fedcompress.merging.data_driven.chunks import chunk_counts, importance_of
from fedcompress.merging.data_driven.diagonals import collect_fisher
from fedcompress.merging.data_driven.expert import Expert, Learned, alignment, expert, merged_adapters
from fedcompress.merging.data_driven.factored import Factored, change_of, stacked
from fedcompress.merging.data_driven.fisher import fisher
from fedcompress.merging.data_driven.grams import collect_grams
from fedcompress.merging.data_driven.regmean import regmean, regmean_stacked
from fedcompress.merging.data_driven.table import DATA_RULES, DataRow
from fedcompress.merging.data_driven.widen import Dense, column_weights, movement, widen, widen_factors

__all__ = [
    "DATA_RULES",
    "DataRow",
    "Dense",
    "Expert",
    "Factored",
    "Learned",
    "alignment",
    "change_of",
    "chunk_counts",
    "collect_fisher",
    "collect_grams",
    "column_weights",
    "expert",
    "fisher",
    "importance_of",
    "merged_adapters",
    "movement",
    "regmean",
    "regmean_stacked",
    "stacked",
    "widen",
    "widen_factors",
]
