"""Lion: the sign of an interpolated momentum; one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from fedcompress.optim.base import ELEMENTWISE, ShardInfo, State, check_moments


@dataclass(frozen=True, kw_only=True)
class Lion:
    """``sign(beta1 m + (1 - beta1) g)``, then ``m = beta2 m + (1 - beta2) g``.

    Chen et al. 2023 (arXiv:2302.06675), algorithm 2.
    """

    name: ClassVar[str] = "lion"
    placement: ClassVar[str] = ELEMENTWISE
    moments: ClassVar[Mapping[str, bool]] = {"m": True}
    needs_weight: ClassVar[bool] = False
    beta1: float = 0.9
    beta2: float = 0.99
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_moments(self)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter."""

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """One moment for each entry."""
        return {"m": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        import torch

        first = state["m"] if "m" in state else torch.zeros_like(grad)
        delta = torch.lerp(first, grad, 1 - self.beta1).sign_()
        return delta, {"m": first.lerp_(grad, 1 - self.beta2)}
