"""ID3 runs Adam on a part of each matrix that grows step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import MATRIX, ShardInfo, StepContext, check_moments, check_positive, check_share
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.sparse import SparseMoments, check_indexable, move_moments, step_entries

if TYPE_CHECKING:
    from torch import Tensor


class ID3State(SparseMoments, total=False):
    """ID3 keeps Adam's moments and the places of the k entries that are unmasked so far."""


@dataclass(frozen=True, kw_only=True)
class ID3:
    """ID3 unmasks, at each step, the entries with the largest ``|g| / (|w| + eps)^exp`` of those still masked.

    Agarwal et al. 2024 (arXiv:2408.14470, algorithm 1), with the defaults of the released code's example. The number of
    trained entries grows in equal parts over ``steps``; what is unmasked stays so. The paper ranks the entries of the
    whole model, this rule those of one matrix, so that a matrix needs no gradient but its own, and each matrix has the
    same density. Moments exist for unmasked entries only, in the released code for all. Masked entries neither move nor
    decay.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("id3(density=0.25,steps=2)"), preview_step("id3(density=0.25,steps=2)", steps=2).moved
    (StepPreview(moved=0.12, downhill=1.0, state_bytes=72), 0.25)

    Args:
        density: share of each matrix that is trained in the end.
        steps: number of steps over which that share grows.
        exp: 0 ranks entries by the gradient, 1 by its ratio to the weight.
        eps: added to the weight in the ranking.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        adam_eps: added to the root of the second moment after the correction of its bias.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "id3"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    density: float = 0.01
    steps: int = 1000
    exp: float = 0.0
    eps: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_share("optimizer.id3.density", self.density)
        for name in ("steps", "eps", "adam_eps"):
            check_positive(f"optimizer.id3.{name}", getattr(self, name))
        if self.exp < 0:
            raise ConfigError("optimizer.id3.exp", self.exp, "must be at least 0")
        check_moments(self)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Accept matrices whose places fit into int32."""
        check_indexable(self.name, name, shape)

    def count_unmasked(self, shape: tuple[int, ...], step: int) -> int:
        """Return how many entries of a matrix are trained in a step."""
        budget = max(1, round(self.density * prod(shape)))
        return min(budget, ceil(budget * step / self.steps))

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments for the entries that are trained in the end."""
        numel = self.count_unmasked(shape, self.steps)
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the places, an int32 for each entry that is trained in the end."""
        return 4 * self.count_unmasked(shape, self.steps)

    def update(
        self, grad: Tensor, state: ID3State, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, SparseMoments]:
        """Take Adam's step on all unmasked entries, after unmasking those that are due."""
        sparse = self._unmask(grad, weight, state, self.count_unmasked(shard.shape, context.step))
        betas = (self.beta1, self.beta2)
        return step_entries(
            grad,
            weight,
            sparse,
            context.weight_decay,
            lambda entries, moments: adam(entries, moments, context.step, betas, self.adam_eps),
        )

    def _unmask(self, grad: Tensor, weight: Tensor, state: ID3State, count: int) -> SparseMoments:
        """Return the state with ``count`` unmasked entries; new ones begin with moments of 0."""
        import torch

        before = state["places"] if "places" in state else torch.zeros(0, dtype=torch.int32, device=grad.device)
        if before.numel() >= count:
            return state
        score = (grad.abs() / (weight.abs() + self.eps) ** self.exp).reshape(-1)
        score[before.long()] = -1.0
        new = score.topk(count - before.numel(), sorted=False).indices.to(torch.int32)
        return move_moments(state, torch.cat([before, new]).sort().values)
