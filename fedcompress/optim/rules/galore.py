"""GaLore: Adam in the leading singular directions of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import (
    MATRIX,
    ShardInfo,
    State,
    check_choice,
    check_moments,
    check_positive,
)
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import BASES, basis_of
from fedcompress.optim.state.projection import CARRIES, carried, check_rank, larger_side, to_full, to_low

PRODUCTS: tuple[str, ...] = ("fp32", "bf16")
SIDES: tuple[str, ...] = ("std", "reverse", "right", "left", "full")


@dataclass(frozen=True, kw_only=True)
class GaLore:
    """``scale * back(Adam(project(g)))``, with a new basis every ``update_gap`` steps.

    Zhao et al. 2024 (arXiv:2403.03507, algorithm 2), with the released code's defaults, its eps and
    its moments that stay as they are when the basis changes. Each matrix refreshes at steps of its own, there all
    at once. Weight decay comes before the step, there after it.

    Args:
        rank: of the subspace; at most the smaller side.
        update_gap: steps between refreshes.
        scale: of the step.
        side: ``std`` projects the smaller side, ``reverse`` the other, ``full`` both.
        basis: ``svd`` is the paper's; ``randomized`` and ``power`` (warm-started) cost a tenth of it.
        carry: what becomes of the moments: ``keep`` (the paper), ``reset``, ``project``.
        products: ``bf16`` keeps the bases in bfloat16 and makes the products with them in it; a basis is
            still computed in float32. Half the bytes, and a fraction of the time where a CPU or GPU has units for it.
    """

    name: ClassVar[str] = "galore"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
    rank: int = 128
    update_gap: int = 200
    scale: float = 0.25
    side: str = "std"
    basis: str = "svd"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    carry: str = "keep"
    products: str = "fp32"
    state: str = "fp32"

    def __post_init__(self) -> None:
        field = f"optimizer.{self.name}"
        for name in ("rank", "update_gap", "scale", "eps"):
            check_positive(f"{field}.{name}", getattr(self, name))
        check_choice(f"{field}.side", self.side, SIDES)
        check_choice(f"{field}.basis", self.basis, BASES)
        check_moments(self)
        check_choice(f"{field}.carry", self.carry, CARRIES)
        check_choice(f"{field}.products", self.products, PRODUCTS)
        if self.side == "full" and self.carry == "project":
            raise ConfigError(f"{field}.carry", self.carry, "must be keep or reset with side=full")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices whose smaller side is at least the rank."""
        check_rank(self.name, self.rank, name, shape)

    def _side(self, shape: tuple[int, ...]) -> str:
        std = larger_side(shape)
        match self.side:
            case "std":
                return std
            case "reverse":
                return "left" if std == "right" else "right"
            case _:
                return self.side

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments in the subspace."""
        match self._side(shape):
            case "right":
                numel = self.rank * shape[0]
            case "left":
                numel = self.rank * shape[1]
            case _:
                numel = self.rank**2
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The basis, or two."""
        match self._side(shape):
            case "right":
                return self._width * self.rank * shape[1]
            case "left":
                return self._width * self.rank * shape[0]
            case _:
                return self._width * self.rank * sum(shape)

    @property
    def _width(self) -> int:
        """Bytes of an entry of a basis."""
        return 2 if self.products == "bf16" else 4

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        side = self._side(part.shape)
        if side == "full":
            return self._full(grad, state, part, part.refresh(step, self.update_gap))
        _, inner, kept = self._inside(grad, state, step, part, side)
        return to_full(inner.mul_(self.scale), kept["basis"], side), kept

    def _inside(self, grad: Any, state: State, step: int, part: ShardInfo, side: str) -> tuple[Any, Any, State]:
        """The projected gradient, Adam's direction there, and the new state."""
        refresh = part.refresh(step, self.update_gap)
        if state.get("refresh") != refresh:
            before = state.get("basis")
            basis = self._basis(grad, side, before, part, refresh)
            state = carried(state, before, basis, side, self.carry) | {"basis": self._rounded(basis)}
        basis, age = state["basis"], state.get("age", 0) + 1
        low = to_low(grad, basis, side)
        inner, kept = adam(low, state, age, (self.beta1, self.beta2), self.eps, plain_eps=True)
        return low, inner, kept | {"basis": basis, "age": age, "refresh": refresh}

    def _basis(self, grad: Any, side: str, before: Any, part: ShardInfo, refresh: int) -> Any:
        generator = part.generator(refresh)
        before = None if before is None else before.float()
        return basis_of(grad, self.rank, self.basis, side=side, before=before, generator=generator)

    def _rounded(self, basis: Any) -> Any:
        return basis.bfloat16() if self.products == "bf16" else basis

    def _full(self, grad: Any, state: State, part: ShardInfo, refresh: int) -> tuple[Any, State]:
        """Both sides: ``Adam(U^T G V)``."""
        if state.get("refresh") != refresh:
            old = state if self.carry == "keep" else {}
            left = self._basis(grad, "left", state.get("left"), part, refresh)
            right = self._basis(grad, "right", state.get("right"), part, refresh)
            state = old | {"left": self._rounded(left), "right": self._rounded(right)}
        left, right, age = state["left"], state["right"], state.get("age", 0) + 1
        low = to_low(to_low(grad, left, "left"), right, "right")
        inner, kept = adam(low, state, age, (self.beta1, self.beta2), self.eps, plain_eps=True)
        delta = to_full(to_full(inner.mul_(self.scale), left, "left"), right, "right")
        return delta, kept | {"left": left, "right": right, "age": age, "refresh": refresh}
