"""The sparse mean lies between the mean over the sites that sent an entry and the mean over all sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.rules.mean import check_share, shrunk_mean


@dataclass(frozen=True, kw_only=True)
class SparseMean(Stateless):
    """The rule is ``sum_i w_i * delta_i / (1 - lambda + lambda * s)``, with s the weight of sites that sent the entry.

    Entries that were not sent are missing values of a sample. Dividing by the weight of all sites (lambda 0, the
    mean) takes them for zero and is the normalization of Horvitz and Thompson; dividing by the weight of the senders
    (lambda 1, ``disjoint-mean``) is Hajek's. The family between them is Trotter and Tukey's (Khan and Ugander 2023,
    arXiv:2106.07695, section 1). Shrinking towards the mean keeps an entry that a single site sent from counting in
    full: it is at most ``1 / (1 - lambda)`` times its share of the mean.

    Args:
        lambda_: from 0 (the mean) to 1 (``disjoint-mean``); written ``lambda`` in text.

    Raises:
        ConfigError: lambda is not from 0 to 1.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("sparse-mean(lambda=0.5)"), [[4, 4, 0], [8, 0, 0]]).round(3))
        [6.    2.667 0.   ]
    """

    name: ClassVar[str] = "sparse-mean"
    lambda_: float = 0.5

    def __post_init__(self) -> None:
        check_share("rule.sparse-mean.lambda", self.lambda_, "mean", "disjoint-mean")

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the shrunk mean, float64, shape (n,)."""
        return shrunk_mean(block, self.lambda_)
