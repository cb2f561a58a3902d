"""APOLLO: the gradient, scaled as Adam would in a small random projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import MATRIX, ShardInfo, State, check_choice, check_moments, check_positive
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.projection import TINY, channel_scale, check_rank, larger_side, limited, to_low

SCALINGS = ("channel", "tensor")
SOURCES = ("seed", "kept")


@dataclass(frozen=True, kw_only=True)
class Apollo:
    """``sqrt(scale) * limit(s * g)``, with ``R = P^T g`` and ``s = |Adam(R)| / |R|``.

    Zhu et al. 2024 (arXiv:2412.05270, algorithm 1), from the paper alone. P is Gaussian of variance
    ``1 / rank`` and drawn anew every ``update_gap`` steps; the moments stay. The limiter is Fira's and, as
    there, sees Adam's direction before the correction of its bias; a norm of 0 does not limit the
    next one (``limited``). Each matrix refreshes at steps of its own.

    Args:
        rank: of the projection; the paper has a quarter of the smaller side.
        update_gap: steps between refreshes.
        scaling: s for each ``channel`` of the larger side, or for the whole ``tensor``.
        scale: its root multiplies the step; about side over rank for fine-tuning.
        basis: ``seed`` draws P again at each step and keeps nothing (the paper), ``kept`` keeps it.
        growth: of the step's norm from step to step, at most.
    """

    name: ClassVar[str] = "apollo"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
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

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices whose smaller side is at least the rank."""
        check_rank(self.name, self.rank, name, shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments of the projected gradient."""
        return {"m": self.rank * max(shape), "v": self.rank * max(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """A norm, and P if it is kept."""
        return 4 + (4 * self.rank * min(shape) if self.basis == "kept" else 0)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        side, refresh = larger_side(part.shape), part.refresh(step, self.update_gap)
        basis = state.get("basis") if state.get("refresh") == refresh else None
        if basis is None:
            basis = self._drawn(grad, part, refresh)
        low, age = to_low(grad, basis, side), state.get("age", 0) + 1
        inner, kept = adam(low, state, age, (self.beta1, self.beta2), self.eps, plain_eps=True)
        correction = (1 - self.beta2**age) ** 0.5 / (1 - self.beta1**age)
        per_channel = self.scaling == "channel"
        scale = channel_scale(inner, low, side) if per_channel else inner.norm() / (low.norm() + TINY)
        step_, norm = limited(grad * (scale / correction), state.get("norm"), self.growth)
        kept |= {"age": age, "refresh": refresh, "norm": norm}
        if self.basis == "kept":
            kept["basis"] = basis
        return step_.mul_(correction * self.scale**0.5), kept

    def _drawn(self, grad: Any, part: ShardInfo, refresh: int) -> Any:
        import torch

        drawn = torch.randn(min(part.shape), self.rank, generator=part.generator(refresh))
        return drawn.to(grad).mul_(self.rank**-0.5)


@dataclass(frozen=True, kw_only=True)
class ApolloMini(Apollo):
    """APOLLO of rank 1 with one scale for each matrix: next to no state."""

    name: ClassVar[str] = "apollo-mini"
    rank: int = 1
    scaling: str = "tensor"
    scale: float = 128.0
