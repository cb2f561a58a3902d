"""Fira: GaLore, and the rest of the gradient by the scale that Adam has in the subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import ShardInfo, State
from fedcompress.optim.rules.galore import GaLore
from fedcompress.optim.state.projection import channel_scale, limited, to_full


@dataclass(frozen=True, kw_only=True)
class Fira(GaLore):
    """``scale * P N + limit(phi * (g - P R))``, with ``R = P^T g``, ``N = Adam(R)`` and ``phi = |N| / |R|``.

    Chen et al. 2024 (arXiv:2410.01623): norm-based scaling by channels of the side that is not projected, and
    the norm-growth limiter; defaults of the released code. As there, the limiter sees Adam's direction
    before the correction of its bias. The rest is ``g - P R`` as in the paper; the released code
    takes off only ``scale * P R``, so that with scale 0.25 three quarters of R are stepped twice.
    A norm of 0 does not limit the next one (``limited``).

    Args:
        growth: of the rest's norm from step to step, at most.
    """

    name: ClassVar[str] = "fira"
    growth: float = 1.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side == "full":
            raise ConfigError("optimizer.fira.side", self.side, "must be std, reverse, right or left")
        if self.growth < 1:
            raise ConfigError("optimizer.fira.growth", self.growth, "must be at least 1")

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The basis and a norm."""
        return super().other_bytes(shape) + 4

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        side, last = self._side(part.shape), state.get("norm")
        low, inner, kept = self._inside(grad, state, step, part, side)
        basis, age = kept["basis"], kept["age"]
        correction = (1 - self.beta2**age) ** 0.5 / (1 - self.beta1**age)
        phi = channel_scale(inner, low, side) / correction
        rest, norm = limited((grad - to_full(low, basis, side)).mul_(phi), last, self.growth)
        delta = to_full(inner, basis, side).float().mul_(self.scale).add_(rest, alpha=correction)
        return delta, kept | {"norm": norm}
