"""SGD steps along the gradient, with or without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, TypedDict

from fedcompress.optim.base import STORES, ShardInfo, StepContext, check_beta, check_choice
from fedcompress.optim.rules.elementwise import ElementwiseRule

if TYPE_CHECKING:
    from torch import Tensor


class SGDState(TypedDict, total=False):
    """SGD keeps its momentum if it has one, and nothing else."""

    m: Tensor  # decayed sum of the gradients; float32, shape (shard.numel,)


@dataclass(frozen=True, kw_only=True)
class SGD(ElementwiseRule):
    """SGD steps along the gradient, or along ``m = momentum * m + g`` (Polyak 1964), as in torch.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("sgd"), preview_step("sgd(momentum=0.9)").state_bytes
    (StepPreview(moved=1.0, downhill=1.0, state_bytes=0), 192)

    Args:
        momentum: share of the last momentum that stays; 0 keeps none.
        state: how the momentum is stored between steps.
    """

    name: ClassVar[str] = "sgd"
    moments: ClassVar[Mapping[str, bool]] = {"m": True}
    momentum: float = 0.0
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_beta("optimizer.sgd.momentum", self.momentum)
        check_choice("optimizer.sgd.state", self.state, STORES)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the size of the momentum, with a number for each entry; none without momentum."""
        return {"m": prod(shape)} if self.momentum else {}

    def update(
        self, grad: Tensor, state: SGDState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, SGDState]:
        """Return the gradient or the new momentum, which is also the new state."""
        if not self.momentum:
            return grad, {}
        first = state["m"].mul_(self.momentum).add_(grad) if "m" in state else grad.clone()
        return first, {"m": first}
