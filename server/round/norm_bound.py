"""The norm bound refuses updates that are far longer than those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

NORM_HISTORY = 3  # rounds whose norms count besides those of the open round


def compute_norm_bound(factor: float, norms: Sequence[float], earlier_norms: Sequence[float]) -> float:
    """Compute the Euclidean norm of the longest update that is admitted.

    It is ``factor`` times the lower median of the norms of this round and of the last ones. Of two sites the longer one
    does not move it, and an attacker must be most of the cohort.

    Args:
        factor: the option ``norm-bound``; 0 for no bound.
        norms: norms of the updates of the open round.
        earlier_norms: norms of the updates that the last rounds have merged.

    Returns:
        The bound; infinite with a factor of 0, or where fewer than two norms above 0 are known.
    """
    known = [norm for norm in (*norms, *earlier_norms) if norm > 0]
    return factor * median_low(known) if factor and len(known) > 1 else float("inf")
