"""Fira is GaLore, and steps the rest of the gradient too, by the scale that Adam has in the subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import ShardInfo, StepContext
from fedcompress.optim.rules.galore import GaLoreRule, GaLoreState
from fedcompress.optim.state.projection import compute_channel_scale, limit_growth, project_back

if TYPE_CHECKING:
    from torch import Tensor


class FiraState(GaLoreState, total=False):
    """Fira keeps GaLore's state of one side, and the norm that the limiter compares with."""

    norm: Tensor  # norm of the last rest, scaled and limited; float32, shape ()


@dataclass(frozen=True, kw_only=True)
class Fira(GaLoreRule):
    """Fira steps along ``scale * P N + limit(phi * (g - P R))``, with ``R = P^T g`` and ``N = Adam(R)``.

    The scale ``phi = |N| / |R|`` is taken by channels of the side that is not projected. Chen et al. 2024
    (arXiv:2410.01623): norm-based scaling, and the norm-growth limiter, with the defaults of the released code. As
    there, the limiter sees Adam's direction before the correction of its bias. The rest is ``g - P R`` as in the paper;
    the released code takes off only ``scale * P R``, so that with scale 0.25 three quarters of R are stepped twice. A
    norm of 0 is passed over (``limit_growth``).

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("fira(rank=2)")
    StepPreview(moved=1.0, downhill=0.79, state_bytes=180)

    Args:
        growth: largest growth of the norm of the rest from one step to the next.
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
        """Return the bytes of the basis and of one norm."""
        return super().other_bytes(shape) + 4

    def update(
        self, grad: Tensor, state: FiraState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, FiraState]:
        """Take GaLore's step, and add the rest of the gradient at Adam's scale, limited in its growth."""
        side = self._choose_side(shard.shape)
        last_norm = state.get("norm")
        low, inner, new_state = self._compute_inner_step(grad, state, shard, context, side)
        basis = new_state["basis"]
        age = new_state["age"]
        correction = (1 - self.beta2**age) ** 0.5 / (1 - self.beta1**age)
        phi = compute_channel_scale(inner, low, side) / correction
        rest, norm = limit_growth((grad - project_back(low, basis, side)).mul_(phi), last_norm, self.growth)
        delta = project_back(inner, basis, side).float().mul_(self.scale).add_(rest, alpha=correction)
        return delta, {**new_state, "norm": norm}
