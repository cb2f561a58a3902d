"""Weights of a merge of folders are checked here; unlike those of a round, they may be negative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.files.merge.reduction import EXACT, FLORA, PRODUCT, MergeOptions
from fedcompress.files.merge.sources import Site, is_bias
from fedcompress.merging.base import Floats
from fedcompress.merging.engine import normalize_weights

FIELD = "--weights"
LINEAR = ("mean", "task-arithmetic", "wise-ft")  # rules that are sums of the weighted changes, in the space product


def scale_weights(weights: Sequence[float] | None, count: int, as_sum: bool) -> Floats:
    """Divide weights by their sum, or leave them as they are.

    Args:
        weights: one finite number for each adapter; None is 1 for each.
        count: number of adapters.
        as_sum: leave them as they are, whatever their sum.

    Returns:
        Shape (count,), float64; unless ``as_sum``, they add up to 1.

    Raises:
        ConfigError: the weights are not ``count`` finite numbers, all are 0, or their sum is not above 0.
    """
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count or not all(map(math.isfinite, given)):
        raise ConfigError("weights", given, f"must be {count} finite numbers, one for each adapter")
    if as_sum:
        if not any(given):
            raise ConfigError("weights", given, "must not all be 0")
        return np.array(given)
    if min(given, default=0.0) >= 0:
        return normalize_weights(given, count)
    total = math.fsum(given)
    if total <= 1e-12 * sum(map(abs, given)):
        rule = (
            f"must have a sum above 0, by which they are divided: it is {total:g}; give --sum to take them as they are"
        )
        raise ConfigError(FIELD, given, rule)
    return np.array(given) / total


def check_weights(weights: Floats, options: MergeOptions, as_sum: bool) -> None:
    """Raise unless a rule can take the weights: negative ones, and sums other than 1, are for what is linear in them.

    Args:
        weights: shape (sites,), float64.
        options: the rule and the space.
        as_sum: whether the weights were left as they are.

    Raises:
        ConfigError: the rule votes, ranks, or averages factors by the weights.
    """
    is_linear = options.name in (EXACT, FLORA) or (options.space == PRODUCT and options.name in LINEAR)
    if is_linear or not (as_sum or (weights < 0).any()):
        return
    rule = (
        f"is for exact and flora, and for {', '.join(LINEAR)} with --space product: {options.name} weighs factors, "
        "votes or ranks by the weights"
    )
    if as_sum:
        raise ConfigError("--sum", "given", rule)
    raise ConfigError(FIELD, weights.tolist(), f"a negative weight {rule}")


def check_sum(sites: Sequence[Site], weights: Floats) -> None:
    """Raise ``ConfigError`` if weights do not add up to 1, but some tensors are whole values and not changes."""
    whole = next((t.name for s in sites for t in s.others if not is_bias(t.name)), "")
    if whole and abs(float(weights.sum()) - 1) > 1e-9:
        rule = f"must be left out, or the weights add up to 1: {whole} is saved whole, and has only a mean"
        raise ConfigError("--sum", "given", rule)
