"""AdamP is Adam without the part of a step that only makes scale-invariant weights longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import MATRIX, ShardInfo, StepContext, check_moments, check_positive, check_share
from fedcompress.optim.state.adam_moments import AdamMoments, adam

if TYPE_CHECKING:
    from torch import Tensor


class AdamPState(AdamMoments, total=False):
    """AdamP keeps Adam's moments ``m`` and ``v``, in the shape of the parameter."""


@dataclass(frozen=True, kw_only=True)
class AdamP:
    """AdamP is Adam whose step is made orthogonal to the weight where the gradient is nearly so.

    Heo et al. 2021 (arXiv:2006.08217, algorithm 2), with the released code's defaults. A weight counts as
    scale-invariant by rows if all cosines between its rows and those of the gradient are below ``delta / sqrt(n)``,
    n being the length of a row. Otherwise it may be scale-invariant as a whole, by one cosine of all entries. Vectors
    are never projected. Norms need the whole parameter, so every parameter has an owner under ZeRO, embeddings too.

    The rule adds weight decay itself: a weight that is projected gets ``wd_ratio`` of it, as in the released code. The
    Nesterov variant is left out.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("adamp")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=384)

    Args:
        delta: bound of the cosine, times ``sqrt(n)``, below which the gradient counts as orthogonal.
        wd_ratio: share of the weight decay that scale-invariant weights get.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment, and to norms that are divided by.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "adamp"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    delta: float = 0.1
    wd_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_positive("optimizer.adamp.delta", self.delta)
        check_share("optimizer.adamp.wd_ratio", self.wd_ratio)
        check_moments(self)
        check_positive("optimizer.adamp.eps", self.eps)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Accept every parameter that is no scalar and has entries."""
        if not shape or 0 in shape:
            raise ConfigError("optimizer.adamp", f"{name} of shape {list(shape)}", "must have a side; give it to adamw")

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments with a number for each entry."""
        return {"m": prod(shape), "v": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return 0: there is no state beside the moments."""
        return 0

    def update(
        self, grad: Tensor, state: AdamPState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, AdamMoments]:
        """Take Adam's step, and remove its part along the weight where the weight is scale-invariant."""
        delta, moments = adam(grad, state, context.step, (self.beta1, self.beta2), self.eps)
        pieces = self._count_invariant_pieces(grad, weight) if grad.ndim > 1 else 0
        if pieces:
            pieces_of_weight = weight.reshape(pieces, -1)
            pieces_of_step = delta.view(pieces, -1)
            unit = pieces_of_weight / (pieces_of_weight.norm(dim=1, keepdim=True) + self.eps)
            pieces_of_step -= unit * (unit * pieces_of_step).sum(1, keepdim=True)
        if context.weight_decay:
            delta.add_(weight, alpha=context.weight_decay * (self.wd_ratio if pieces else 1.0))
        return delta, moments

    def _count_invariant_pieces(self, grad: Tensor, weight: Tensor) -> int:
        """Return in how many pieces the weight is scale-invariant: its number of rows, 1 for the whole, or 0."""
        for pieces in (weight.shape[0], 1):
            left = grad.reshape(pieces, -1)
            right = weight.reshape(pieces, -1)
            norms = (left.norm(dim=1) * right.norm(dim=1)).clamp_(min=self.eps)
            cosine = ((left * right).sum(1).abs() / norms).max()
            if cosine < self.delta / right.shape[1] ** 0.5:
                return int(pieces)
        return 0
