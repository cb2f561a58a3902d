"""Adam's step, which most rules take somewhere, and the types of the moments that it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class AdamMoments(TypedDict, total=False):
    """Adam's moments have the shape of the gradient that Adam is given; both keys are absent before the first step."""

    m: Tensor  # running mean of the gradient; float32
    v: Tensor  # running mean of the squared gradient; float32, never below 0


class AgedMoments(AdamMoments, total=False):
    """Adam's moments with an age of their own count from the step at which they last began at 0."""

    age: int  # steps that the moments have seen; Adam corrects their bias by it


def adam(
    grad: Tensor, state: AdamMoments, step: int, betas: tuple[float, float], eps: float, *, plain_eps: bool = False
) -> tuple[Tensor, AdamMoments]:
    """Compute Adam's direction ``m_hat / (sqrt(v_hat) + eps)`` and the new moments.

    Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1.

    Args:
        grad: gradient, float32, any shape.
        state: the moments ``m`` and ``v``, shaped like ``grad``, which are written to; without them they begin at 0.
        step: number of the step, 1 for the first, by which the bias of the moments is corrected.
        betas: decay rates of ``m`` and ``v``.
        eps: keeps the direction finite where ``v`` is 0.
        plain_eps: add eps to ``sqrt(v)`` before the correction of its bias, as in the released GaLore, instead of
            after it.

    Returns:
        The direction, shaped like ``grad`` and in memory of its own, and the moments alone.
    """
    import torch

    beta1, beta2 = betas
    first = state["m"] if "m" in state else torch.zeros_like(grad)
    second = state["v"] if "v" in state else torch.zeros_like(grad)
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    bias1 = 1 - beta1**step
    root_bias2 = (1 - beta2**step) ** 0.5
    denominator = second.sqrt()
    if plain_eps:
        denominator = denominator.add_(eps).mul_(bias1 / root_bias2)
    else:
        denominator = denominator.mul_(bias1 / root_bias2).add_(eps * bias1)
    return torch.div(first, denominator, out=denominator), {"m": first, "v": second}
