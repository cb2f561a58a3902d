"""SGD, with or without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from fedcompress.optim.base import ELEMENTWISE, STORES, ShardInfo, State, check_beta, check_choice


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The gradient, or ``m = momentum m + g`` (Polyak 1964), as in torch."""

    name: ClassVar[str] = "sgd"
    placement: ClassVar[str] = ELEMENTWISE
    moments: ClassVar[Mapping[str, bool]] = {"m": True}
    needs_weight: ClassVar[bool] = False
    momentum: float = 0.0
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_beta("optimizer.sgd.momentum", self.momentum)
        check_choice("optimizer.sgd.state", self.state, STORES)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter."""

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """One moment for each entry, if there is momentum."""
        return {"m": prod(shape)} if self.momentum else {}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        if not self.momentum:
            return grad, {}
        first = state["m"].mul_(self.momentum).add_(grad) if "m" in state else grad.clone()
        return first, {"m": first}
