"""LDAdam: Adam in a subspace that follows the gradient at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.optim.base import MATRIX, ShardInfo, State, check_beta, check_choice, check_moments, check_positive
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import basis_of
from fedcompress.optim.state.feedback import FEEDBACKS, error_bytes, kept_error, with_error
from fedcompress.optim.state.projection import check_rank, larger_side, to_full, to_low

STARTS = ("svd", "randomized")


@dataclass(frozen=True, kw_only=True)
class LDAdam:
    """``P Adam(P^T a)`` with ``a = g + e``, where P is one block power iteration from the last.

    Robert et al. 2024 (arXiv:2410.16103, section 3), with the released code's defaults. P follows
    ``rho * P m_hat + (1 - rho) * a``. Moments are turned by ``Q = P_before^T P``: m as a vector, v as
    ``(Q * Q) (v_hat - m_hat^2) + (Q m_hat)^2`` in absolute value. The error e has what the projection left out
    of a, and ``beta1 / (1 - beta1)`` times what the turn left out of m. It is state here; the
    released code leaves it in the gradient, which then must never be freed or set to 0, and squares
    ``Q * Q`` once more.

    Args:
        rank: of the subspace; at most the smaller side.
        rho: how much of the momentum P follows.
        start: the first P: ``svd`` (the paper), or ``randomized`` at a tenth of the cost.
        feedback: how the error e is kept: ``none``, or 4 bytes an entry down to half a byte.
    """

    name: ClassVar[str] = "ldadam"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
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

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices whose smaller side is at least the rank."""
        check_rank(self.name, self.rank, name, shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments in the subspace."""
        return {"m": self.rank * max(shape), "v": self.rank * max(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The basis and the error."""
        return 4 * self.rank * min(shape) + error_bytes(self.feedback, shape)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        side, age = larger_side(part.shape), state.get("age", 0)
        grad, before, moved = with_error(grad, state), state.get("basis"), 0.0
        if before is None:
            basis = basis_of(grad, self.rank, self.start, side=side, generator=part.generator(0))
        else:
            momentum = to_full(state["m"], before, side)
            follow = momentum * (self.rho / (1 - self.beta1**age)) + grad * (1 - self.rho)
            basis = basis_of(follow, self.rank, "power", side=side, before=before)
            state = self._turned(state, before.T @ basis, side, age)
            moved = (momentum - to_full(state["m"], basis, side)) * (self.beta1 / (1 - self.beta1))
        low = to_low(grad, basis, side)
        inner, kept = adam(low, dict(state), age + 1, (self.beta1, self.beta2), self.eps)
        kept |= {"basis": basis, "age": age + 1}
        if self.feedback != "none":
            kept |= kept_error(grad - to_full(low, basis, side) + moved, self.feedback, part, step)
        return to_full(inner, basis, side), kept

    def _turned(self, state: State, turn: Any, side: str, age: int) -> State:
        """Moments in the new basis; v is a variance and a squared mean."""
        bias1, bias2 = 1 - self.beta1**age, 1 - self.beta2**age
        first = to_low(state["m"], turn, side)
        variance = state["v"] / bias2 - (state["m"] / bias1) ** 2
        second = to_low(variance, turn * turn, side) + (first / bias1) ** 2
        return {"m": first, "v": second.abs_().mul_(bias2)}
