"""The weighted mean of updates is FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.types import Array


def weighted_sum(values: Array, weights: Floats) -> Floats:
    """Return ``sum_i weights_i * values_i``, accumulated in float64 in the order of the sites.

    ``values`` has shape (sites, n) and ``weights`` has shape (sites,); the result has shape (n,).
    """
    total = np.zeros(values.shape[1])
    scaled = np.empty_like(total)
    for weight, row in zip(weights, values, strict=True):
        np.multiply(row, weight, out=scaled)
        total += scaled
    return total


def sender_weight(values: Array, weights: Floats) -> Floats:
    """Return the total weight of the sites whose entry is not zero, shape (n,), float64."""
    total = np.zeros(values.shape[1])
    for weight, row in zip(weights, values, strict=True):
        total += weight * (row != 0)
    return total


def shrunk_mean(block: Block, lambda_: float) -> Floats:
    """Return a mean between the mean over all sites and the mean over those that sent an entry.

    ``sum_i w_i * delta_i / (1 - lambda + lambda * s)``, where ``s`` is the weight of the sites whose entry is not
    zero; 0 where all entries are zero. Lambda 0 is the mean over all, lambda 1 the mean over the senders.

    Returns:
        Shape (n,), float64.
    """
    total = weighted_sum(block.values, block.weights)
    share = sender_weight(block.values, block.weights)
    return np.divide(total, 1 - lambda_ + lambda_ * share, out=np.zeros_like(total), where=share > 0)


def check_share(field: str, value: float, at_zero: str, at_one: str) -> None:
    """Raise ``ConfigError`` unless a parameter that moves a rule between two others is from 0 to 1.

    Args:
        field: dotted name of the parameter.
        value: its value.
        at_zero: what the rule is at 0, for the message.
        at_one: what the rule is at 1, for the message.

    Raises:
        ConfigError: the value is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ConfigError(field, value, f"must be from 0 ({at_zero}) to 1 ({at_one})")


@dataclass(frozen=True, kw_only=True)
class Mean(Stateless):
    """The rule is the weighted mean ``sum_i w_i * delta_i``, accumulated in float64 in the order of the sites.

    On LoRA factors this is FedIT: mean(B) mean(A), which is not mean(BA).

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("mean"), [[1, 0, 2], [3, 4, 2]], weights=[1, 3]))
        [2.5 3.  2. ]
    """

    name: ClassVar[str] = "mean"

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the weighted mean, float64, shape (n,)."""
        return weighted_sum(block.values, block.weights)
