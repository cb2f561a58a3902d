"""SignSGD: no state at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.optim.base import ELEMENTWISE, ShardInfo, State


@dataclass(frozen=True, kw_only=True)
class SignSGD:
    """The sign of the gradient (Bernstein et al. 2018, arXiv:1802.04434, algorithm 1)."""

    name: ClassVar[str] = "signsgd"
    placement: ClassVar[str] = ELEMENTWISE
    moments: ClassVar[Mapping[str, bool]] = {}
    needs_weight: ClassVar[bool] = False
    state: ClassVar[str] = "fp32"

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter."""

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """None."""
        return {}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        return grad.sign(), {}
