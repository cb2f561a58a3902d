"""ID3: Adam on a part of each matrix that grows step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import (
    MATRIX,
    ShardInfo,
    State,
    check_moments,
    check_positive,
    check_share,
)
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.sparse import check_indexed, masked, moved


@dataclass(frozen=True, kw_only=True)
class ID3:
    """Each step unmasks the entries with the largest ``|g| / (|w| + eps)^exp`` of those still masked.

    Agarwal et al. 2024 (arXiv:2408.14470, algorithm 1), with the defaults of the released code's example. The
    number of trained entries grows in equal parts over ``steps``; what is unmasked stays so. The paper ranks
    entries of the whole model, this rule those of one matrix, so that a matrix needs none but its own
    gradient and each has the same density. Moments exist for unmasked entries only, there for all. Others
    neither move nor decay.

    Args:
        density: share of each matrix that is trained in the end.
        steps: over which it grows.
        exp: 0 ranks by the gradient, 1 by its ratio to the weight.
        eps: of the ranking.
        adam_eps: of Adam.
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
        """Matrices."""
        check_indexed(self.name, name, shape)

    def count(self, shape: tuple[int, ...], step: int) -> int:
        """Entries that are trained in a step."""
        budget = max(1, round(self.density * prod(shape)))
        return min(budget, ceil(budget * step / self.steps))

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments for each trained entry, when all are."""
        numel = self.count(shape, self.steps)
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The positions."""
        return 4 * self.count(shape, self.steps)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        state = self._grown(grad, weight, state, self.count(part.shape, step))
        betas = (self.beta1, self.beta2)
        return masked(grad, weight, state, part.weight_decay, lambda g, s: adam(g, s, step, betas, self.adam_eps))

    def _grown(self, grad: Any, weight: Any, state: State, count: int) -> State:
        """State with so many entries."""
        import torch

        before = state["places"] if "places" in state else torch.zeros(0, dtype=torch.int32, device=grad.device)
        if before.numel() >= count:
            return state
        rank = (grad.abs() / (weight.abs() + self.eps) ** self.exp).reshape(-1)
        rank[before.long()] = -1.0
        new = rank.topk(count - before.numel(), sorted=False).indices.to(torch.int32)
        return moved(state, torch.cat([before, new]).sort().values)
