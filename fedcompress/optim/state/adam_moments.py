"""Adam's moments, which most rules share."""

from __future__ import annotations

from typing import Any

from fedcompress.optim.base import State


def adam(
    grad: Any, state: State, step: int, betas: tuple[float, float], eps: float, *, plain_eps: bool = False
) -> tuple[Any, State]:
    """Adam's direction ``m_hat / (sqrt(v_hat) + eps)`` and moments ``m``, ``v``.

    Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1. With ``plain_eps``, eps is added to
    ``sqrt(v)`` before the correction of its bias, as in the released GaLore.

    Args:
        grad: float32.
        state: ``m`` and ``v``, or empty; they are written to.
        step: 1 for the first.
        betas: of the two moments.
        eps: against division by 0.
        plain_eps: where eps is added.
    """
    import torch

    beta1, beta2 = betas
    first = state["m"] if "m" in state else torch.zeros_like(grad)
    second = state["v"] if "v" in state else torch.zeros_like(grad)
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    bias1, root2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    below = second.sqrt()
    below = below.add_(eps).mul_(bias1 / root2) if plain_eps else below.mul_(bias1 / root2).add_(eps * bias1)
    return torch.div(first, below, out=below), {"m": first, "v": second}
