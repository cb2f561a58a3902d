"""Nesterov momentum at the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.server_optim.base import ServerOptimizerState, advanced, check_range, fresh, narrow
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Nesterov:
    """m = momentum m + step; lr (step + momentum m).

    The outer step of DiLoCo, Douillard et al. 2023 (arXiv:2311.08105, algorithm 1 and section 3), in the form
    of torch's SGD with ``nesterov=True``.

    Raises:
        ConfigError: ``lr`` is below 0, or ``momentum`` not from 0 to below 1.
    """

    name: ClassVar[str] = "nesterov"
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr, momentum=self.momentum)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """M = 0."""
        return fresh(self.name, layout, {"m": 0.0})

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """The step, float32, computed in float64, and the next m."""
        change, velocity = {}, {}
        for name, value in step.items():
            moving = self.momentum * state.slots["m"][name].astype(np.float64) + value
            velocity[name] = narrow(moving)
            change[name] = narrow(self.lr * (value + self.momentum * moving))
        return change, advanced(state, {"m": velocity})
