"""The server optimizer ``sgd`` takes a share of the merged update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.server_optim.base import ServerOptimizer, ServerOptimizerState, check_range, initial_state
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Sgd(ServerOptimizer):
    """The optimizer's step is ``lr * step``. With ``lr=1`` this is FedAvg, McMahan et al. 2017 (arXiv:1602.05629).

    Args:
        lr: server learning rate, at least 0.

    Raises:
        ConfigError: ``lr`` is below 0.

    Examples:
        >>> from fedcompress.merging.server_optim import parse_server_optimizer, step_arrays
        >>> print(step_arrays(parse_server_optimizer("sgd(lr=0.5)"), [[1, 2], [1, -2]]))
        [[ 0.5  1. ]
         [ 0.5 -1. ]]
    """

    name: ClassVar[str] = "sgd"
    lr: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """Make a state without slots."""
        return initial_state(self.name, layout, {})

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """Return the scaled update, computed in float32, and the same state."""
        with np.errstate(over="ignore"):
            return {name: np.float32(self.lr) * value for name, value in step.items()}, state
