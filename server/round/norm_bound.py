"""Updates that are far longer than those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

NORM_HISTORY = 3  # rounds whose norms count with those of this one


def compute_norm_bound(factor: float, norms: Sequence[float], before: Sequence[float]) -> float:
    """The longest update that is admitted; infinite with a factor of 0, or where nothing is known.

    ``factor`` times the lower median of the norms of this round and of the last ones: of two sites the longer
    one does not move it, and an attacker must be most of the cohort.
    """
    known = [n for n in (*norms, *before) if n > 0]
    return factor * median_low(known) if factor and len(known) > 1 else float("inf")
