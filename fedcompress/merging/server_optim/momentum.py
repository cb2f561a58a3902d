"""Momentum at the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.server_optim.base import ServerOptimizerState, advanced, check_range, fresh, narrow
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """m = momentum m + step; lr m.

    FedAvgM, Hsu et al. 2019 (arXiv:1909.06335).

    Raises:
        ConfigError: ``lr`` is below 0, or ``momentum`` not from 0 to below 1.
    """

    name: ClassVar[str] = "momentum"
    lr: float = 1.0
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
            change[name] = narrow(self.lr * moving)
        return change, advanced(state, {"m": velocity})
