"""DCT-AdamW: Adam in the cosines that hold most of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.optim.base import MATRIX, ShardInfo, State, check_choice, check_moments, check_positive
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import dct_columns, dct_matrix
from fedcompress.optim.state.feedback import FEEDBACKS, error_bytes, kept_error, with_error
from fedcompress.optim.state.projection import CARRIES, check_rank, larger_side, to_full, to_low


@dataclass(frozen=True, kw_only=True)
class DCTAdamW:
    """``back(Adam(project(g + e)))`` by columns of the cosine transform, selected anew every ``update_gap`` steps.

    Modoranu et al. 2025 (arXiv:2505.17967, section 3), with the released code's defaults; that has
    none for the rank. The state holds the numbers of the columns, not a basis: the transform of a size is one
    for all matrices. Selected by l1 norm and kept in ascending order; the released code leaves the order
    open, on which ``carry=keep`` depends. One transform for each size; there it is one for all,
    so that all matrices must have one smaller side.

    Args:
        rank: how many columns; at most the smaller side.
        update_gap: steps between selections.
        carry: what becomes of the moments: ``keep`` (by place), ``reset``, or ``project``, the paper's
            rotation: columns are orthonormal, so a column that stays keeps its moments and others begin at 0.
        feedback: how the error e is kept: ``none``, or 4 bytes an entry down to half a byte.
    """

    name: ClassVar[str] = "dct-adamw"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
    rank: int = 128
    update_gap: int = 1
    carry: str = "keep"
    feedback: str = "none"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("rank", "update_gap", "eps"):
            check_positive(f"optimizer.dct-adamw.{name}", getattr(self, name))
        check_choice("optimizer.dct-adamw.carry", self.carry, CARRIES)
        check_choice("optimizer.dct-adamw.feedback", self.feedback, FEEDBACKS)
        check_moments(self)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices whose smaller side is at least the rank."""
        check_rank(self.name, self.rank, name, shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments of the selected columns."""
        return {"m": self.rank * max(shape), "v": self.rank * max(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """An int32 for each column, and the error."""
        return 4 * self.rank + error_bytes(self.feedback, shape)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        side, refresh = larger_side(part.shape), part.refresh(step, self.update_gap)
        grad, cosine = with_error(grad, state), dct_matrix(min(part.shape), grad.device)
        if state.get("refresh") != refresh:
            transformed = to_low(grad, cosine, side)
            columns = dct_columns(transformed if side == "right" else transformed.T, self.rank)
            state = self._carried(state, columns, side) | {"columns": columns.int()}
            low = transformed[:, columns] if side == "right" else transformed[columns]
            basis = cosine[:, columns]
        else:
            basis = cosine[:, state["columns"].long()]
            low = to_low(grad, basis, side)
        age = state.get("age", 0) + 1
        inner, kept = adam(low, state, age, (self.beta1, self.beta2), self.eps)
        kept |= {"columns": state["columns"], "age": age, "refresh": refresh}
        if self.feedback != "none":
            kept |= kept_error(grad - to_full(low, basis, side), self.feedback, part, step)
        return to_full(inner, basis, side), kept

    def _carried(self, state: State, columns: Any, side: str) -> State:
        """State under other columns; the rotation between them is of zeros and ones."""
        if "columns" not in state or self.carry == "reset":
            return {}
        if self.carry == "keep":
            return state
        turn = (state["columns"][:, None] == columns[None]).to(state["m"])
        if side == "right":
            return state | {"m": state["m"] @ turn, "v": state["v"] @ turn}
        return state | {"m": turn.T @ state["m"], "v": turn.T @ state["v"]}
