"""Task arithmetic: a scaled mean of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.updates import Updates

MAX_SCALE = 1e6


def check_scale(field: str, scale: float) -> None:
    """Raise ``ConfigError`` unless a scale is one; a negative one forgets."""
    if not -MAX_SCALE <= scale <= MAX_SCALE:
        raise ConfigError(field, scale, "must be a number from -1e6 to 1e6")


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic:
    """scale * sum_i w_i * delta_i.

    Ilharco et al. 2023 (arXiv:2212.04089, section 2) add up task vectors: ``lambda * sum_i delta_i``. Here
    weights add up to 1, so that the scale does not depend on the number of sites: for n equal weights, their
    lambda is ``scale / n``. A negative scale negates (forgets), as theirs.

    Args:
        scale: of the weighted mean, from -1e6 to 1e6; with 1 it is the mean.

    Raises:
        ConfigError: the scale is out of range.
    """

    name: ClassVar[str] = "task-arithmetic"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale("rule.task-arithmetic.scale", self.scale)

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The scaled mean, float64, shape (n,)."""
        return self.scale * weighted_sum(block)
