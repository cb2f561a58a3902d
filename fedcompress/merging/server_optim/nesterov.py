"""The server optimizer ``nesterov`` is momentum that looks one step ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats
from fedcompress.merging.server_optim.momentum import Momentum
from fedcompress.types import Array


@dataclass(frozen=True, kw_only=True)
class Nesterov(Momentum):
    """The optimizer keeps ``m = momentum m + step``, and its step is ``lr (step + momentum m)``.

    This is the outer step of DiLoCo, Douillard et al. 2023 (arXiv:2311.08105, algorithm 1 and section 3), in the form
    of torch's SGD with ``nesterov=True``.

    Args:
        lr: server learning rate, at least 0.
        momentum: decay of m, from 0 to below 1.

    Raises:
        ConfigError: ``lr`` is below 0, or ``momentum`` is not from 0 to below 1.

    Examples:
        >>> from fedcompress.merging.server_optim import parse_server_optimizer, step_arrays
        >>> print(step_arrays(parse_server_optimizer("nesterov(lr=1,momentum=0.5)"), [[1, 2], [1, -2]]))
        [[ 1.5   3.  ]
         [ 1.75 -2.5 ]]
    """

    name: ClassVar[str] = "nesterov"
    lr: float = 0.7

    def _direction(self, step: Array, m: Floats) -> Floats:
        """Return this round's update plus the decayed momentum."""
        direction: Floats = step + self.momentum * m
        return direction
