"""Lion steps by the sign of an interpolated momentum, and keeps one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, TypedDict

from fedcompress.optim.base import ShardInfo, StepContext, check_moments
from fedcompress.optim.rules.elementwise import ElementwiseRule

if TYPE_CHECKING:
    from torch import Tensor


class LionState(TypedDict, total=False):
    """Lion keeps one momentum; it is absent before the first step."""

    m: Tensor  # running mean of the gradient; float32, shape (shard.numel,)


@dataclass(frozen=True, kw_only=True)
class Lion(ElementwiseRule):
    """Lion steps along ``sign(beta1 m + (1 - beta1) g)``, and then sets ``m = beta2 m + (1 - beta2) g``.

    Chen et al. 2023 (arXiv:2302.06675), algorithm 2.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("lion")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=192)

    Args:
        beta1: weight of the momentum in the step.
        beta2: decay rate of the momentum.
        state: how the momentum is stored between steps.
    """

    name: ClassVar[str] = "lion"
    moments: ClassVar[Mapping[str, bool]] = {"m": True}
    beta1: float = 0.9
    beta2: float = 0.99
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_moments(self)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the size of one moment with a number for each entry."""
        return {"m": prod(shape)}

    def update(
        self, grad: Tensor, state: LionState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, LionState]:
        """Take the sign of the interpolated momentum; every entry of the direction is -1, 0 or 1."""
        import torch

        first = state["m"] if "m" in state else torch.zeros_like(grad)
        delta = torch.lerp(first, grad, 1 - self.beta1).sign_()
        return delta, {"m": first.lerp_(grad, 1 - self.beta2)}
