"""The three steps of TIES, which it shares with other rules, are here: ``trim``, ``elect_sign``, ``disjoint_mean``.

Yadav et al. 2023 (arXiv:2306.01708, section 3): trim the small entries of each update, elect a sign for each place,
and average the entries that have the elected sign. ``dare-ties`` replaces the first step by a random drop;
``magnitude-prune`` and ``breadcrumbs`` have the first step alone. Between the first two steps, ``sum_by_sign`` goes
over the sites once and adds up both signs at the same time, so that the updates are read only once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.statistics import TIE
from fedcompress.types import Array

ELECTIONS = ("mass", "count")  # how a sign is elected: by weighted sums of entries, or by weights of sites


def check_election(field: str, election: str) -> None:
    """Raise ``ConfigError`` unless a name is one of ``ELECTIONS``."""
    if election not in ELECTIONS:
        raise ConfigError(field, election, f"one of {list(ELECTIONS)}")


@dataclass(frozen=True)
class SignSums:
    """Holds sums over the sites, apart for positive and for negative entries; each has shape (n,), float64.

    The weighted sums are kept apart since a difference of them keeps nothing of 1e-10 beside 1e30.
    """

    positive_weight: Floats  # sum of the weights of the sites whose entry is above 0
    negative_weight: Floats  # sum of the weights of the sites whose entry is below 0
    positive_sum: Floats  # weighted sum of the entries above 0
    negative_sum: Floats  # weighted sum of the entries below 0, so at most 0


def trim(values: Array, low: Array, high: Array | None = None) -> Array:
    """Set entries to 0 whose magnitude is too small, or too large, for their site (step 1 of TIES).

    Args:
        values: updates, shape (sites, n), float32.
        low: shape (sites,): the smallest magnitude that stays, of each site.
        high: shape (sites,): the largest magnitude that stays; no limit if left out.

    Returns:
        Shape (sites, n), float32. What stays is unchanged, and not scaled up.
    """
    trimmed = np.empty_like(values)
    stays = np.empty(values.shape[1], np.bool_)
    for site, row in enumerate(values):
        magnitude = np.abs(row, out=trimmed[site])
        np.greater_equal(magnitude, low[site], out=stays)
        if high is not None:
            stays &= magnitude <= high[site]
        np.multiply(row, stays, out=trimmed[site])
    return trimmed


def sum_by_sign(values: Array, weights: Floats) -> SignSums:
    """Add up the positive and the negative entries of each place, and the weights of their sites.

    Sums are in float64, in the order of the sites, in one pass over them.

    Args:
        values: updates, shape (sites, n), float32; an entry of 0 belongs to neither sign.
        weights: shape (sites,), float64.
    """
    size = values.shape[1]
    positive_weight = np.zeros(size)
    negative_weight = np.zeros(size)
    positive_sum = np.zeros(size)
    negative_sum = np.zeros(size)
    scaled = np.empty(size)
    part = np.empty(size)
    mask = np.empty(size, np.bool_)
    for weight, row in zip(weights, values, strict=True):
        positive_weight += np.multiply(np.greater(row, 0, out=mask), weight, out=part)
        negative_weight += np.multiply(np.less(row, 0, out=mask), weight, out=part)
        np.multiply(row, weight, out=scaled)
        positive_sum += np.maximum(scaled, 0, out=part)
        negative_sum += np.minimum(scaled, 0, out=part)
    return SignSums(positive_weight, negative_weight, positive_sum, negative_sum)


def elect_sign(sums: SignSums, election: str) -> NDArray[np.int8]:
    """Choose the sign of each place by a vote of the sites (step 2 of TIES).

    Args:
        sums: what the sites have at each place.
        election: ``mass`` elects the sign of the weighted sum of the entries; ``count`` elects the sign that has more
            weight of sites, whatever the magnitude of their entries.

    Returns:
        Shape (n,), int8: 1 or -1, or 0 where nothing was sent or the vote is a tie. A vote is a tie if its balance is
        at most ``TIE`` of all that was cast, so that rounding elects nobody.
    """
    if election == "mass":
        balance = sums.positive_sum + sums.negative_sum
        cast = sums.positive_sum - sums.negative_sum
    else:
        balance = sums.positive_weight - sums.negative_weight
        cast = sums.positive_weight + sums.negative_weight
    sign = np.where(balance > 0, np.int8(1), np.int8(-1))
    sign[np.abs(balance) <= TIE * cast] = 0
    return sign


def disjoint_mean(sums: SignSums, sign: NDArray[np.int8]) -> Floats:
    """Average the entries that have the elected sign, by the weights of their sites (step 3 of TIES).

    The paper calls this the disjoint merge. It is not the rule ``disjoint-mean``, which has no election.

    Args:
        sums: what the sites have at each place.
        sign: the elected sign of each place, shape (n,).

    Returns:
        Shape (n,), float64; 0 where no sign was elected.
    """
    total = np.where(sign > 0, sums.positive_sum, sums.negative_sum)
    weight = np.where(sign > 0, sums.positive_weight, sums.negative_weight)
    return np.divide(total, weight, out=np.zeros_like(total), where=(sign != 0) & (weight > 0))
