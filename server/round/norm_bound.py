"""The norm bound refuses updates that are far longer than those of the others, or than any can be."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_low

NORM_HISTORY = 3  # turns of each site whose norms count besides those of the open round


def compute_norm_bound(
    factor: float, norms: Mapping[str, float], earlier_norms: Mapping[str, float], largest: float = 0.0
) -> float:
    """Compute the Euclidean norm of the longest update that is admitted.

    It is ``factor`` times the lower median of one norm of each site: that of this round, or else its newest one. So no
    site moves the bound by what it sends again and again. Of two sites the longer one does not move it, and an
    attacker must be most of the sites.

    Args:
        factor: the option ``norm-bound``; 0 compares with no other site.
        norms: norms of the updates of the open round, by site.
        earlier_norms: norm of the newest update of each site in the last rounds.
        largest: the option ``max-norm``, which holds for lone and first updates, too; 0 for none.

    Returns:
        The bound; where fewer than two norms above 0 are known it is ``largest``, or infinite without it.
    """
    limit = largest or float("inf")
    known = [norm for norm in {**earlier_norms, **norms}.values() if norm > 0]
    return min(factor * median_low(known), limit) if factor and len(known) > 1 else limit
