"""AdamW is Adam with decoupled weight decay, with states in float32 or in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from fedcompress.optim.base import ShardInfo, StepContext, check_moments, check_positive
from fedcompress.optim.rules.elementwise import ElementwiseRule
from fedcompress.optim.state.adam_moments import AdamMoments, adam

if TYPE_CHECKING:
    from torch import Tensor


class AdamWState(AdamMoments, total=False):
    """AdamW keeps Adam's moments ``m`` and ``v``, each with one number for each entry of the shard."""


@dataclass(frozen=True, kw_only=True)
class AdamW(ElementwiseRule):
    """AdamW steps along Adam's direction and decays the weights separately.

    Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2. With ``state=8bit`` it is the optimizer of Dettmers et
    al. 2022 (arXiv:2110.02861).

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("adamw(beta2=0.95)")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=384)

    Args:
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment after the correction of its bias.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "adamw"
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_moments(self)
        check_positive("optimizer.adamw.eps", self.eps)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments with a number for each entry."""
        return {"m": prod(shape), "v": prod(shape)}

    def update(
        self, grad: Tensor, state: AdamWState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, AdamMoments]:
        """Take Adam's step."""
        return adam(grad, state, context.step, (self.beta1, self.beta2), self.eps)


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(AdamW):
    """AdamW8bit is AdamW with 8-bit states, under the name by which it is known.

    A parameter with fewer than 4096 entries still has its moments in float32; a large one has 2 bytes an entry.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("adamw8bit") == preview_step("adamw(state=8bit)")
    True
    """

    name: ClassVar[str] = "adamw8bit"
    state: str = "8bit"
