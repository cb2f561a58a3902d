"""SignSGD steps by the sign of the gradient, and keeps no state at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

from fedcompress.optim.base import ShardInfo, StepContext
from fedcompress.optim.rules.elementwise import ElementwiseRule

if TYPE_CHECKING:
    from torch import Tensor


class SignSGDState(TypedDict, total=False):
    """SignSGD's state is always empty."""


@dataclass(frozen=True, kw_only=True)
class SignSGD(ElementwiseRule):
    """SignSGD steps along the sign of the gradient (Bernstein et al. 2018, arXiv:1802.04434, algorithm 1).

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("signsgd")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=0)
    """

    name: ClassVar[str] = "signsgd"
    moments: ClassVar[Mapping[str, bool]] = {}
    state: ClassVar[str] = "fp32"

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return no sizes: there are no moments."""
        return {}

    def update(
        self, grad: Tensor, state: SignSGDState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, SignSGDState]:
        """Return the sign of the gradient; every entry is -1, 0 or 1."""
        return grad.sign(), {}
