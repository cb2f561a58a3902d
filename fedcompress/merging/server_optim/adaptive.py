"""What adam, yogi and adagrad share: algorithm 2 of Reddi et al. 2021 (arXiv:2003.00295).

m = beta1 m + (1 - beta1) step; v by each method's law; lr m / (sqrt(v) + tau), without correction of bias. v starts at
tau squared, the least that the algorithm allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedcompress.merging.server_optim.base import ServerOptimizerState, Wide, advanced, fresh, narrow
from fedcompress.types import Array, Layout, Tensors


def start(optimizer: str, layout: Layout, tau: float) -> ServerOptimizerState:
    """M = 0, v = tau squared."""
    return fresh(optimizer, layout, {"m": 0.0, "v": tau * tau})


def adapted(
    step: Mapping[str, Array],
    state: ServerOptimizerState,
    *,
    lr: float,
    beta1: float,
    tau: float,
    second: Callable[[Wide, Wide], Wide],
) -> tuple[Tensors, ServerOptimizerState]:
    """The step, float32, computed in float64, and the next m and v.

    Args:
        step: merged update.
        state: slots ``m`` and ``v``.
        lr: server learning rate.
        beta1: decay of m.
        tau: added to the root of v.
        second: the next v from v and the square of the step.
    """
    change, first, squares = {}, {}, {}
    for name, value in step.items():
        wide = value.astype(np.float64)
        mean = beta1 * state.slots["m"][name].astype(np.float64) + (1 - beta1) * wide
        spread = second(state.slots["v"][name].astype(np.float64), wide * wide)
        change[name] = narrow(lr * mean / (np.sqrt(spread) + tau))
        first[name], squares[name] = narrow(mean), narrow(spread)
    return change, advanced(state, {"m": first, "v": squares})
