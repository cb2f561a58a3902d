"""Merge rules that need more than updates are here: Fisher diagonals, Gram matrices, dense weights or batches.

They are functions of the library and no part of a round, since no message carries what they need. ``DATA_RULES`` is
the one table of them. Only ``collect_fisher``, ``collect_grams``, ``expert`` and ``alignment_loss`` need torch.
"""

from fedcompress.merging.data_driven.chunks import chunk_counts, compute_importance
from fedcompress.merging.data_driven.diagonals import collect_fisher
from fedcompress.merging.data_driven.expert import (
    Expert,
    LearnedCoefficients,
    alignment_loss,
    combine_adapters,
    expert,
)
from fedcompress.merging.data_driven.factored import Factored, factor_change, stack_factors
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
    "LearnedCoefficients",
    "alignment_loss",
    "chunk_counts",
    "collect_fisher",
    "collect_grams",
    "column_weights",
    "combine_adapters",
    "compute_importance",
    "expert",
    "factor_change",
    "fisher",
    "movement",
    "regmean",
    "regmean_stacked",
    "stack_factors",
    "widen",
    "widen_factors",
]
