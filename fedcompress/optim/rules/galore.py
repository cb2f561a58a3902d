"""GaLore runs Adam in the leading singular directions of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import ShardInfo, StepContext, check_choice, check_moments, check_positive
from fedcompress.optim.rules.subspace import SubspaceRule
from fedcompress.optim.state.adam_moments import AdamMoments, AgedMoments, adam
from fedcompress.optim.state.bases import BASES, compute_basis
from fedcompress.optim.state.projection import CARRIES, carry_moments, choose_side, project, project_back

if TYPE_CHECKING:
    from torch import Tensor

PRODUCTS: tuple[str, ...] = ("fp32", "bf16")
SIDES: tuple[str, ...] = ("std", "reverse", "right", "left", "full")


class GaLoreState(AgedMoments, total=False):
    """GaLore's state, for a weight of shape (m, n).

    The moments ``m`` and ``v`` have shape (m, rank) where the side is ``right``, (rank, n) where it is ``left``, and
    (rank, rank) with ``side=full``. Bases have orthonormal columns and are float32, or bfloat16 with ``products=bf16``.
    """

    basis: Tensor  # shape (n, rank) for right, (m, rank) for left; absent with side=full
    left: Tensor  # shape (m, rank); only with side=full
    right: Tensor  # shape (n, rank); only with side=full
    refresh: int  # number of the refresh interval that the bases were computed in


@dataclass(frozen=True, kw_only=True)
class GaLoreRule(SubspaceRule):
    """A rule of GaLore's family projects the gradient, keeps Adam's moments there, and renews the basis in intervals.

    Args:
        rank: number of directions; a matrix whose smaller side is below it has as many as that.
        update_gap: steps between refreshes of the basis.
        scale: factor of the step.
        side: ``std`` projects the smaller side, ``reverse`` the other one, ``full`` both.
        basis: how the basis is computed. ``svd`` is the paper's; ``randomized`` and ``power``, which starts from the
            last basis, cost a tenth of it.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment before the correction of its bias.
        carry: what becomes of the moments at a refresh: ``keep`` (the paper), ``reset``, or ``project``.
        products: ``bf16`` keeps the bases in bfloat16 and makes the products with them in it; a basis is still
            computed in float32. That takes half the bytes, and a fraction of the time where a CPU or GPU has units for
            bfloat16.
        state: how the moments are stored between steps.
    """

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

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments in the subspace."""
        rank = self.count_directions(shape)
        match self._choose_side(shape):
            case "right":
                numel = rank * shape[0]
            case "left":
                numel = rank * shape[1]
            case _:
                numel = rank**2
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the basis, or of both bases with ``side=full``."""
        width = (2 if self.products == "bf16" else 4) * self.count_directions(shape)  # bytes of a row of a basis
        match self._choose_side(shape):
            case "right":
                return width * shape[1]
            case "left":
                return width * shape[0]
            case _:
                return width * sum(shape)

    def _choose_side(self, shape: tuple[int, ...]) -> str:
        standard = choose_side(shape)
        match self.side:
            case "std":
                return standard
            case "reverse":
                return "left" if standard == "right" else "right"
            case _:
                return self.side

    def _compute_step(
        self, grad: Tensor, state: GaLoreState, shard: ShardInfo, context: StepContext
    ) -> tuple[Tensor, GaLoreState]:
        """Compute GaLore's direction, shape (m, n) in the dtype of the basis, and the new state."""
        side = self._choose_side(shard.shape)
        if side == "full":
            return self._compute_step_of_both_sides(grad, state, shard, context.refresh_number(shard, self.update_gap))
        _, inner, new_state = self._compute_inner_step(grad, state, shard, context, side)
        return project_back(inner.mul_(self.scale), new_state["basis"], side), new_state

    def _compute_inner_step(
        self, grad: Tensor, state: GaLoreState, shard: ShardInfo, context: StepContext, side: str
    ) -> tuple[Tensor, Tensor, GaLoreState]:
        """Return the projected gradient, Adam's direction in the subspace in the same shape, and the new state."""
        refresh = context.refresh_number(shard, self.update_gap)
        moments: AgedMoments = state
        if state.get("refresh") == refresh:
            basis = state["basis"]
        else:
            before = state.get("basis")
            exact = self._compute_basis(grad, side, before, shard, refresh)
            moments = carry_moments(state, before, exact, side, self.carry)
            basis = self._round_basis(exact)
        age = moments.get("age", 0) + 1
        low = project(grad, basis, side)
        inner, new_moments = self._run_adam(low, moments, age)
        new_state: GaLoreState = {
            "m": new_moments["m"],
            "v": new_moments["v"],
            "basis": basis,
            "age": age,
            "refresh": refresh,
        }
        return low, inner, new_state

    def _compute_step_of_both_sides(
        self, grad: Tensor, state: GaLoreState, shard: ShardInfo, refresh: int
    ) -> tuple[Tensor, GaLoreState]:
        """Compute the step with both sides projected, ``U Adam(U^T G V) V^T``."""
        moments: AgedMoments = state
        if state.get("refresh") == refresh:
            left = state["left"]
            right = state["right"]
        else:
            if self.carry != "keep":
                moments = {}
            left = self._round_basis(self._compute_basis(grad, "left", state.get("left"), shard, refresh))
            right = self._round_basis(self._compute_basis(grad, "right", state.get("right"), shard, refresh))
        age = moments.get("age", 0) + 1
        low = project(project(grad, left, "left"), right, "right")
        inner, new_moments = self._run_adam(low, moments, age)
        delta = project_back(project_back(inner.mul_(self.scale), left, "left"), right, "right")
        return delta, {
            "m": new_moments["m"],
            "v": new_moments["v"],
            "left": left,
            "right": right,
            "age": age,
            "refresh": refresh,
        }

    def _run_adam(self, grad: Tensor, moments: AdamMoments, age: int) -> tuple[Tensor, AdamMoments]:
        return adam(grad, moments, age, (self.beta1, self.beta2), self.eps, plain_eps=True)

    def _compute_basis(self, grad: Tensor, side: str, before: Tensor | None, shard: ShardInfo, refresh: int) -> Tensor:
        """Compute a float32 basis from the gradient and, for ``power``, the last basis."""
        generator = shard.generator(refresh)
        before = None if before is None else before.float()
        rank = self.count_directions(shard.shape)
        return compute_basis(grad, rank, self.basis, side=side, before=before, generator=generator)

    def _round_basis(self, basis: Tensor) -> Tensor:
        return basis.bfloat16() if self.products == "bf16" else basis


@dataclass(frozen=True, kw_only=True)
class GaLore(GaLoreRule):
    """GaLore steps along ``scale * back(Adam(project(g)))``, with a new basis every ``update_gap`` steps.

    Zhao et al. 2024 (arXiv:2403.03507, algorithm 2), with the released code's defaults, its eps, and its moments, which
    stay as they are when the basis changes. Each matrix refreshes at steps of its own, in the released code all at
    once. Weight decay comes before the step, there after it.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("galore(rank=2)")
    StepPreview(moved=1.0, downhill=0.69, state_bytes=176)
    """

    name: ClassVar[str] = "galore"

    def update(
        self, grad: Tensor, state: GaLoreState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, GaLoreState]:
        """Take Adam's step in the subspace and bring it back to full size."""
        return self._compute_step(grad, state, shard, context)
