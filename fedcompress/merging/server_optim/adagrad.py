"""The server optimizer ``adagrad`` divides by the root of the sum of all squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats
from fedcompress.merging.server_optim.adaptive import adaptive_step, initial_moments
from fedcompress.merging.server_optim.base import ServerOptimizer, ServerOptimizerState, check_range
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Adagrad(ServerOptimizer):
    """The optimizer keeps ``v = v + step^2``, and its step is ``lr m / (sqrt(v) + tau)``.

    FedAdagrad, Reddi et al. 2021 (arXiv:2003.00295, algorithm 2), without momentum by default, as in its experiments.

    Args:
        lr: server learning rate, at least 0.
        beta1: decay of m, the running mean of steps, from 0 to below 1; with 0 m is the merged update.
        tau: added to the root of v, above 0; the larger it is, the less the optimizer adapts.

    Raises:
        ConfigError: ``lr`` is below 0, ``tau`` not above 0, or ``beta1`` not from 0 to below 1.

    Examples:
        >>> from fedcompress.merging.server_optim import parse_server_optimizer, step_arrays
        >>> print(step_arrays(parse_server_optimizer("adagrad(lr=1)"), [[1, 2], [1, -2]]).round(2))
        [[ 1.    1.  ]
         [ 0.71 -0.71]]
    """

    name: ClassVar[str] = "adagrad"
    lr: float = 0.01
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr, beta1=self.beta1, tau=self.tau)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """Make a state with the slots m, which is 0, and v, which is tau squared."""
        return initial_moments(self.name, layout, self.tau)

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """Return the step, computed in float64, and the state with the next m and v."""
        second = self._second_moment
        return adaptive_step(step, state, lr=self.lr, beta1=self.beta1, tau=self.tau, second_moment=second)

    def _second_moment(self, v: Floats, square: Floats) -> Floats:
        return v + square
