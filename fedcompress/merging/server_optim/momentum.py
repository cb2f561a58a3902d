"""The server optimizer ``momentum`` adds up a decaying sum of merged updates; ``nesterov`` is a variant of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Floats
from fedcompress.merging.server_optim.base import (
    ServerOptimizer,
    ServerOptimizerState,
    check_range,
    initial_state,
    next_state,
    to_float32,
)
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Momentum(ServerOptimizer):
    """The optimizer keeps ``m = momentum m + step``, and its step is ``lr m``.

    FedAvgM, Hsu et al. 2019 (arXiv:1909.06335).

    Args:
        lr: server learning rate, at least 0.
        momentum: decay of m, from 0 to below 1.

    Raises:
        ConfigError: ``lr`` is below 0, or ``momentum`` is not from 0 to below 1.

    Examples:
        >>> from fedcompress.merging.server_optim import parse_server_optimizer, step_arrays
        >>> print(step_arrays(parse_server_optimizer("momentum(momentum=0.5)"), [[1, 2], [1, -2]]))
        [[ 1.   2. ]
         [ 1.5 -1. ]]
    """

    name: ClassVar[str] = "momentum"
    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr, momentum=self.momentum)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """Make a state with the slot m, which is 0."""
        return initial_state(self.name, layout, {"m": 0.0})

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """Return the step, computed in float64, and the state with the next m."""
        change: Tensors = {}
        velocity: Tensors = {}
        for name, value in step.items():
            m = self.momentum * state.slots["m"][name].astype(np.float64) + value
            velocity[name] = to_float32(m)
            change[name] = to_float32(self.lr * self._direction(value, m))
        return change, next_state(state, {"m": velocity})

    def _direction(self, step: Array, m: Floats) -> Floats:
        """Return where the optimizer goes, before the learning rate; ``m`` includes this round's update."""
        return m
