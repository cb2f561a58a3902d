"""AdamW, in float32 or with small states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from fedcompress.optim.base import (
    ELEMENTWISE,
    ShardInfo,
    State,
    check_moments,
    check_positive,
)
from fedcompress.optim.state.adam_moments import adam


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay.

    Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2; with ``state=8bit`` that of Dettmers
    et al. 2022 (arXiv:2110.02861).
    """

    name: ClassVar[str] = "adamw"
    placement: ClassVar[str] = ELEMENTWISE
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_moments(self)
        check_positive("optimizer.adamw.eps", self.eps)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter."""

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments for each entry."""
        return {"m": prod(shape), "v": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        return adam(grad, state, step, (self.beta1, self.beta2), self.eps)


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(AdamW):
    """AdamW with 8-bit states, by the name that people know."""

    name: ClassVar[str] = "adamw8bit"
    state: str = "8bit"
