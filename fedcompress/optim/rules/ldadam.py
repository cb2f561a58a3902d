"""LDAdam runs Adam in a subspace that follows the gradient at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.optim.base import ShardInfo, StepContext, check_beta, check_choice, check_moments, check_positive
from fedcompress.optim.rules.subspace import SubspaceRule
from fedcompress.optim.state.adam_moments import AdamMoments, AgedMoments, adam
from fedcompress.optim.state.bases import compute_basis
from fedcompress.optim.state.feedback import FEEDBACKS, ErrorState, add_error, count_error_bytes, pack_error
from fedcompress.optim.state.projection import choose_side, project, project_back

if TYPE_CHECKING:
    from torch import Tensor

STARTS = ("svd", "randomized")


class LDAdamState(AgedMoments, ErrorState, total=False):
    """LDAdam keeps Adam's moments in the subspace, for a weight of shape (m, n).

    They have shape (m, rank) where m >= n, and (rank, n) otherwise. There is an ``error`` unless ``feedback=none``.
    """

    basis: Tensor  # P of the last step, orthonormal columns; float32, shape (min(m, n), rank)


@dataclass(frozen=True, kw_only=True)
class LDAdam(SubspaceRule):
    """LDAdam steps along ``P Adam(P^T a)`` with ``a = g + e``, where P is one block power iteration from the last P.

    Robert et al. 2024 (arXiv:2410.16103, section 3), with the released code's defaults. P follows
    ``rho * P m_hat + (1 - rho) * a``. Moments are turned by ``Q = P_before^T P``: m as a vector, v as
    ``(Q * Q) (v_hat - m_hat^2) + (Q m_hat)^2`` in absolute value. The error e has what the projection left out of a,
    and ``beta1 / (1 - beta1)`` times what the turn left out of m. It is state here. The released code leaves it in the
    gradient, which then must never be freed or set to 0, and squares ``Q * Q`` once more.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("ldadam(rank=2)")
    StepPreview(moved=1.0, downhill=0.69, state_bytes=368)

    Args:
        rank: number of directions; a matrix whose smaller side is below it has as many as that.
        rho: how much of the momentum P follows.
        start: how the first P is found: ``svd`` (the paper), or ``randomized`` at a tenth of the cost.
        feedback: how the error e is stored: ``none``, or from 4 bytes an entry down to half a byte.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment after the correction of its bias.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "ldadam"
    rank: int = 16
    rho: float = 0.908
    start: str = "svd"
    feedback: str = "fp32"
    beta1: float = 0.908
    beta2: float = 0.99
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_positive("optimizer.ldadam.rank", self.rank)
        check_beta("optimizer.ldadam.rho", self.rho)
        check_choice("optimizer.ldadam.start", self.start, STARTS)
        check_choice("optimizer.ldadam.feedback", self.feedback, FEEDBACKS)
        check_moments(self)
        check_positive("optimizer.ldadam.eps", self.eps)

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the basis and of the error."""
        return 4 * self.count_directions(shape) * min(shape) + count_error_bytes(self.feedback, shape)

    def update(
        self, grad: Tensor, state: LDAdamState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, LDAdamState]:
        """Move the subspace, turn the moments into it, take Adam's step there, and bring it back to full size."""
        side = choose_side(shard.shape)
        rank = self.count_directions(shard.shape)
        age = state.get("age", 0)
        grad = add_error(grad, state)
        before = state.get("basis")
        moments: AdamMoments = {}
        lost_momentum = 0.0  # what the turn left out of m, times beta1 / (1 - beta1); a tensor after the first step
        if before is None:
            basis = compute_basis(grad, rank, self.start, side=side, generator=shard.generator(0))
        else:
            momentum = project_back(state["m"], before, side)
            follow = momentum * (self.rho / (1 - self.beta1**age)) + grad * (1 - self.rho)
            basis = compute_basis(follow, rank, "power", side=side, before=before)
            moments = self._turn_moments(state, before.T @ basis, side, age)
            lost_momentum = (momentum - project_back(moments["m"], basis, side)) * (self.beta1 / (1 - self.beta1))
        low = project(grad, basis, side)
        inner, new_moments = adam(low, moments, age + 1, (self.beta1, self.beta2), self.eps)
        new_state: LDAdamState = {"m": new_moments["m"], "v": new_moments["v"], "basis": basis, "age": age + 1}
        if self.feedback != "none":
            error = grad - project_back(low, basis, side) + lost_momentum
            new_state["error"] = pack_error(error, self.feedback, shard, context.step)
        return project_back(inner, basis, side), new_state

    def _turn_moments(self, state: LDAdamState, turn: Tensor, side: str, age: int) -> AdamMoments:
        """Turn the moments into the new basis; v is made of a variance and a squared mean."""
        bias1 = 1 - self.beta1**age
        bias2 = 1 - self.beta2**age
        first = project(state["m"], turn, side)
        variance = state["v"] / bias2 - (state["m"] / bias1) ** 2
        second = project(variance, turn * turn, side) + (first / bias1) ** 2
        return {"m": first, "v": second.abs_().mul_(bias2)}
