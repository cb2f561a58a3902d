"""Weighted mean of updates that are scaled to at most a norm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import norms
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class Clip:
    """sum_i w_i delta_i min(1, norm / |delta_i|), norms over whole updates; ``norm=0`` is the cohort's median norm.

    Sun et al. 2019 (arXiv:1911.07963, norm thresholding). A site with the share w of the weight moves the
    result by no more than ``w * norm`` from where an update of 0 would leave it. The median is of the
    norms of all sites, whatever their weights.

    Raises:
        ConfigError: ``norm`` is below 0.
    """

    name: ClassVar[str] = "clip"
    norm: float = 0.0

    def __post_init__(self) -> None:
        if not self.norm >= 0:
            raise ConfigError("rule.clip.norm", self.norm, "must be at least 0; 0 is the median norm of the cohort")

    def collect_statistics(self, updates: Updates, weights: Floats) -> Floats:
        """Weights times factors, shape (sites,)."""
        found = norms(updates)
        bound = self.norm or float(np.median(found))
        return weights * np.minimum(1, np.divide(bound, found, out=np.ones_like(found), where=found > bound))

    def merge_block(self, block: Block, state: Floats) -> Floats:
        """The weighted mean of scaled updates, shape (n,), float64."""
        return weighted_sum(replace(block, weights=state))
