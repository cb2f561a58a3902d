"""A share of the merged update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.server_optim.base import ServerOptimizerState, check_range, fresh
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """lr * step. With ``lr=1`` this is FedAvg, McMahan et al. 2017 (arXiv:1602.05629).

    Raises:
        ConfigError: ``lr`` is below 0.
    """

    name: ClassVar[str] = "sgd"
    lr: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """Nothing."""
        return fresh(self.name, layout, {})

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """The step, float32, and the same state."""
        with np.errstate(over="ignore"):
            return {name: np.float32(self.lr) * value for name, value in step.items()}, state
