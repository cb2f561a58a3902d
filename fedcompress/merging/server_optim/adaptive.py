"""Holds what ``adam``, ``yogi`` and ``adagrad`` share: algorithm 2 of Reddi et al. 2021 (arXiv:2003.00295).

``m = beta1 m + (1 - beta1) step``; v by each method's law; the step is ``lr m / (sqrt(v) + tau)``, without correction
of bias. v starts at tau squared, the least that the algorithm allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedcompress.merging.base import Floats
from fedcompress.merging.server_optim.base import ServerOptimizerState, initial_state, next_state, to_float32
from fedcompress.types import Array, Layout, Tensors


def initial_moments(optimizer: str, layout: Layout, tau: float) -> ServerOptimizerState:
    """Make the first state of an adaptive optimizer.

    Args:
        optimizer: name of the optimizer.
        layout: layout of the published state.
        tau: what is added to the root of v.

    Returns:
        A state with the slots m, which is 0, and v, which is tau squared.
    """
    return initial_state(optimizer, layout, {"m": 0.0, "v": tau * tau})


def adaptive_step(
    step: Mapping[str, Array],
    state: ServerOptimizerState,
    *,
    lr: float,
    beta1: float,
    tau: float,
    second_moment: Callable[[Floats, Floats], Floats],
) -> tuple[Tensors, ServerOptimizerState]:
    """Make one step of an adaptive optimizer, computed in float64.

    Args:
        step: the merged update, by tensor, float32.
        state: a state with the slots ``m`` and ``v``.
        lr: server learning rate.
        beta1: decay of m.
        tau: what is added to the root of v.
        second_moment: the optimizer's law: the next v from v and the square of the merged update.

    Returns:
        What to add to the published state, float32, and the state with the next m and v.
    """
    change: Tensors = {}
    first_moments: Tensors = {}
    second_moments: Tensors = {}
    for name, value in step.items():
        wide = value.astype(np.float64)
        m = beta1 * state.slots["m"][name].astype(np.float64) + (1 - beta1) * wide
        v = second_moment(state.slots["v"][name].astype(np.float64), wide * wide)
        change[name] = to_float32(lr * m / (np.sqrt(v) + tau))
        first_moments[name] = to_float32(m)
        second_moments[name] = to_float32(v)
    return change, next_state(state, {"m": first_moments, "v": second_moments})
