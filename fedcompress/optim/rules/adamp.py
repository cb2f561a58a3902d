"""AdamP: Adam without the part of the step that only makes scale-invariant weights longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
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


@dataclass(frozen=True, kw_only=True)
class AdamP:
    """Adam; where the gradient is nearly orthogonal to the weight, its step is made orthogonal too.

    Heo et al. 2021 (arXiv:2006.08217, algorithm 2), with the released code's defaults. A weight counts as
    scale-invariant by rows if all cosines between rows of gradient and weight are below
    ``delta / sqrt(n)``, or else as a whole, by one cosine. Vectors are never projected. Norms need the whole
    parameter, so every parameter has an owner, embeddings too. The rule adds weight decay itself: a weight
    that is projected has ``wd_ratio`` of it, as in the released code. Its Nesterov variant is left out.

    Args:
        delta: how orthogonal is nearly.
        wd_ratio: share of the weight decay that scale-invariant weights have.
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
        """Any parameter but a scalar."""
        if not shape or 0 in shape:
            raise ConfigError("optimizer.adamp", f"{name} of shape {list(shape)}", "must have a side; give it to adamw")

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments for each entry."""
        return {"m": prod(shape), "v": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        delta, kept = adam(grad, state, step, (self.beta1, self.beta2), self.eps)
        rows = self._invariant(grad, weight) if grad.ndim > 1 else 0
        if rows:
            flat, wide = weight.reshape(rows, -1), delta.view(rows, -1)
            unit = flat / (flat.norm(dim=1, keepdim=True) + self.eps)
            wide -= unit * (unit * wide).sum(1, keepdim=True)
        if part.weight_decay:
            delta.add_(weight, alpha=part.weight_decay * (self.wd_ratio if rows else 1.0))
        return delta, kept

    def _invariant(self, grad: Any, weight: Any) -> int:
        """In how many pieces the weight is scale-invariant: its rows, one, or none."""
        for rows in (weight.shape[0], 1):
            left, right = grad.reshape(rows, -1), weight.reshape(rows, -1)
            norms = (left.norm(dim=1) * right.norm(dim=1)).clamp_(min=self.eps)
            cosine = ((left * right).sum(1).abs() / norms).max()
            if cosine < self.delta / right.shape[1] ** 0.5:
                return int(rows)
        return 0
