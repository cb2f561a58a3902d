"""APOLLO steps along the gradient, scaled as Adam would scale it in a small random projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import ShardInfo, StepContext, check_choice, check_moments, check_positive
from fedcompress.optim.rules.subspace import SubspaceRule
from fedcompress.optim.state.adam_moments import AgedMoments, adam
from fedcompress.optim.state.projection import TINY, choose_side, compute_channel_scale, limit_growth, project

if TYPE_CHECKING:
    from torch import Tensor

SCALINGS = ("channel", "tensor")
SOURCES = ("seed", "kept")


class ApolloState(AgedMoments, total=False):
    """APOLLO keeps Adam's moments of the projected gradient, for a weight of shape (m, n).

    They have shape (m, rank) where m >= n, and (rank, n) otherwise.
    """

    refresh: int  # number of the refresh interval that P was drawn in
    norm: Tensor  # norm of the last step, after the limiter; float32, shape ()
    basis: Tensor  # P, float32, shape (min(m, n), rank); only with basis=kept


@dataclass(frozen=True, kw_only=True)
class Apollo(SubspaceRule):
    """APOLLO steps along ``sqrt(scale) * limit(s * g)``, with ``R = P^T g`` and ``s = |Adam(R)| / |R|``.

    Zhu et al. 2024 (arXiv:2412.05270, algorithm 1), from the paper alone. P is Gaussian with variance ``1 / rank`` and
    drawn anew every ``update_gap`` steps; the moments stay. The limiter is Fira's. As there, it sees Adam's direction
    before the correction of its bias, and a norm of 0 is passed over (``limit_growth``). Each matrix
    refreshes at steps of its own.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("apollo(rank=2)")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=132)

    Args:
        rank: number of directions; the paper has a quarter of the smaller side.
        update_gap: steps between refreshes of P.
        scaling: s is one number for each ``channel`` of the larger side, or one for the whole ``tensor``.
        scale: its root multiplies the step; about side over rank for fine-tuning.
        basis: ``seed`` draws P again at each step and stores nothing (the paper), ``kept`` stores it.
        growth: largest growth of the step's norm from one step to the next.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment before the correction of its bias.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "apollo"
    rank: int = 256
    update_gap: int = 200
    scaling: str = "channel"
    scale: float = 1.0
    basis: str = "seed"
    growth: float = 1.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    state: str = "fp32"

    def __post_init__(self) -> None:
        field = f"optimizer.{self.name}"
        for name in ("rank", "update_gap", "scale", "eps"):
            check_positive(f"{field}.{name}", getattr(self, name))
        check_choice(f"{field}.scaling", self.scaling, SCALINGS)
        check_choice(f"{field}.basis", self.basis, SOURCES)
        if self.growth < 1:
            raise ConfigError(f"{field}.growth", self.growth, "must be at least 1")
        check_moments(self)

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of one norm, and of P if it is stored."""
        return 4 + (4 * self.count_directions(shape) * min(shape) if self.basis == "kept" else 0)

    def update(
        self, grad: Tensor, state: ApolloState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, ApolloState]:
        """Scale the gradient as Adam does in the projection, and limit how fast its norm grows."""
        side = choose_side(shard.shape)
        refresh = context.refresh_number(shard, self.update_gap)
        basis = state.get("basis") if state.get("refresh") == refresh else None
        if basis is None:
            basis = self._draw_basis(grad, shard, refresh)
        low = project(grad, basis, side)
        age = state.get("age", 0) + 1
        inner, moments = adam(low, state, age, (self.beta1, self.beta2), self.eps, plain_eps=True)
        correction = (1 - self.beta2**age) ** 0.5 / (1 - self.beta1**age)
        if self.scaling == "channel":
            scale = compute_channel_scale(inner, low, side)
        else:
            scale = inner.norm() / (low.norm() + TINY)
        delta, norm = limit_growth(grad * (scale / correction), state.get("norm"), self.growth)
        new_state: ApolloState = {
            "m": moments["m"],
            "v": moments["v"],
            "age": age,
            "refresh": refresh,
            "norm": norm,
        }
        if self.basis == "kept":
            new_state["basis"] = basis
        return delta.mul_(correction * self.scale**0.5), new_state

    def _draw_basis(self, grad: Tensor, shard: ShardInfo, refresh: int) -> Tensor:
        import torch

        rank = self.count_directions(shard.shape)
        gaussian = torch.randn(min(shard.shape), rank, generator=shard.generator(refresh))
        return gaussian.to(grad).mul_(rank**-0.5)


@dataclass(frozen=True, kw_only=True)
class ApolloMini(Apollo):
    """APOLLO-Mini is APOLLO of rank 1 with one scale for each matrix, and has next to no state.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("apollo-mini")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=68)
    """

    name: ClassVar[str] = "apollo-mini"
    rank: int = 1
    scaling: str = "tensor"
    scale: float = 128.0
