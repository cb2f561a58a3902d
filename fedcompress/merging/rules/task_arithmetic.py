"""Task arithmetic is a scaled mean of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.rules.mean import weighted_sum

MAX_SCALE = 1e6  # largest magnitude of a scale


def check_scale(field: str, scale: float) -> None:
    """Raise ``ConfigError`` unless a scale is from -1e6 to 1e6; a negative one makes the model forget."""
    if not -MAX_SCALE <= scale <= MAX_SCALE:
        raise ConfigError(field, scale, "must be a number from -1e6 to 1e6")


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Stateless):
    """The rule is ``scale * sum_i w_i * delta_i``.

    Ilharco et al. 2023 (arXiv:2212.04089, section 2) add up task vectors: ``lambda * sum_i delta_i``. Here the
    weights add up to 1, so that the scale does not depend on the number of sites: for n equal weights, the paper's
    lambda is ``scale / n``. As in the paper, a negative scale makes the model forget what the sites have learned.

    Args:
        scale: factor of the weighted mean, from -1e6 to 1e6; with 1 the rule is the mean.

    Raises:
        ConfigError: the scale is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("task-arithmetic(scale=2)"), [[1, 0, 2], [3, 4, 2]]))
        [4. 4. 4.]
    """

    name: ClassVar[str] = "task-arithmetic"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale("rule.task-arithmetic.scale", self.scale)

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return the scaled mean, float64, shape (n,)."""
        return self.scale * weighted_sum(block.values, block.weights)
