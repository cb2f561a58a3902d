"""The server optimizer ``adam`` divides by the root of a running mean of squares; ``yogi`` is a variant of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Floats
from fedcompress.merging.server_optim.adaptive import adaptive_step, initial_moments
from fedcompress.merging.server_optim.base import ServerOptimizer, ServerOptimizerState, check_range
from fedcompress.types import Array, Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class Adam(ServerOptimizer):
    """The optimizer keeps ``v = beta2 v + (1 - beta2) step^2``, and its step is ``lr m / (sqrt(v) + tau)``.

    FedAdam, Reddi et al. 2021 (arXiv:2003.00295, algorithm 2), which has no correction of bias. A step is of about the
    size of ``lr`` in every entry, so that ``lr`` belongs near the size of an entry of a good update.

    Args:
        lr: server learning rate, at least 0.
        beta1: decay of m, the running mean of steps, from 0 to below 1.
        beta2: decay of v, the running mean of squares, from 0 to below 1.
        tau: added to the root of v, above 0; the larger it is, the less the optimizer adapts.

    Raises:
        ConfigError: ``lr`` is below 0, ``tau`` not above 0, or a beta not from 0 to below 1.

    Examples:
        >>> from fedcompress.merging.server_optim import parse_server_optimizer, step_arrays
        >>> print(step_arrays(parse_server_optimizer("adam(lr=1)"), [[1, 2], [1, -2]]).round(2))
        [[ 0.99  1.  ]
         [ 1.34 -0.07]]
    """

    name: ClassVar[str] = "adam"
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self.name, lr=self.lr, beta1=self.beta1, beta2=self.beta2, tau=self.tau)

    def init(self, layout: Layout) -> ServerOptimizerState:
        """Make a state with the slots m, which is 0, and v, which is tau squared."""
        return initial_moments(self.name, layout, self.tau)

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """Return the step, computed in float64, and the state with the next m and v."""
        second = self._second_moment
        return adaptive_step(step, state, lr=self.lr, beta1=self.beta1, tau=self.tau, second_moment=second)

    def _second_moment(self, v: Floats, square: Floats) -> Floats:
        return self.beta2 * v + (1 - self.beta2) * square
