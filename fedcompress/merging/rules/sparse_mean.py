"""Between the mean over senders and the mean over all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.disjoint_mean import senders
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class SparseMean:
    """sum_i w_i * delta_i / (1 - lambda + lambda * s), s the weight of sites whose entry is not zero.

    Entries that were not sent are a sample's missing values. Dividing by the weight of all (lambda 0, the mean) takes
    them for zero and is Horvitz and Thompson's normalization, dividing by that of the senders (lambda 1,
    ``disjoint-mean``) is Hajek's; the family between them is Trotter and Tukey's (Khan and Ugander 2023,
    arXiv:2106.07695, section 1). Shrinking towards the mean keeps an entry that a single site sent from counting in
    full: it is at most ``1 / (1 - lambda)`` times its share of the mean.

    Args:
        lambda_: from 0 to 1; written ``lambda``.

    Raises:
        ConfigError: lambda is not from 0 to 1.
    """

    name: ClassVar[str] = "sparse-mean"
    lambda_: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_ <= 1:
            raise ConfigError("rule.sparse-mean.lambda", self.lambda_, "must be from 0 (mean) to 1 (disjoint-mean)")

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The shrunk mean, float64, shape (n,)."""
        total, share = weighted_sum(block), senders(block)
        return np.divide(total, 1 - self.lambda_ + self.lambda_ * share, out=np.zeros_like(total), where=share > 0)
