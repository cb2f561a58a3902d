"""FedYogi: like FedAdam, with squares that change by additions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.server_optim.adaptive import adapted, start
from fedcompress.merging.server_optim.base import ServerOptimizerState, Wide, check_range
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Yogi:
    """v = v - (1 - beta2) step^2 sign(v - step^2); lr m / (sqrt(v) + tau).

    FedYogi, Reddi et al. 2021 (arXiv:2003.00295, algorithm 2): v forgets slowly where steps become small.

    Raises:
        ConfigError: ``lr`` is below 0, ``tau`` not above 0, or a beta not from 0 to below 1.
    """

    name: ClassVar[str] = "yogi"
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr, beta1=self.beta1, beta2=self.beta2, tau=self.tau)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """M = 0, v = tau squared."""
        return start(self.name, layout, self.tau)

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """The step, float32, computed in float64, and the next m and v."""
        return adapted(step, state, lr=self.lr, beta1=self.beta1, tau=self.tau, second=self._second)

    def _second(self, v: Wide, square: Wide) -> Wide:
        return v - (1 - self.beta2) * square * np.sign(v - square)
