"""DCT-AdamW runs Adam in the columns of the cosine transform that hold most of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.optim.base import ShardInfo, StepContext, check_choice, check_moments, check_positive
from fedcompress.optim.rules.subspace import SubspaceRule
from fedcompress.optim.state.adam_moments import AgedMoments, adam
from fedcompress.optim.state.bases import build_dct_matrix, select_dct_columns
from fedcompress.optim.state.feedback import FEEDBACKS, ErrorState, add_error, count_error_bytes, pack_error
from fedcompress.optim.state.projection import CARRIES, choose_side, project, project_back

if TYPE_CHECKING:
    from torch import Tensor


class DCTAdamWState(AgedMoments, ErrorState, total=False):
    """DCT-AdamW keeps Adam's moments in the selected columns, for a weight of shape (m, n).

    They have shape (m, rank) where m >= n, and (rank, n) otherwise. There is an ``error`` unless ``feedback=none``.
    """

    columns: Tensor  # numbers of the selected columns, ascending; int32, shape (rank,)
    refresh: int  # number of the refresh interval that the columns were selected in


@dataclass(frozen=True, kw_only=True)
class DCTAdamW(SubspaceRule):
    """DCT-AdamW steps along ``back(Adam(project(g + e)))``, in columns selected anew every ``update_gap`` steps.

    Modoranu et al. 2025 (arXiv:2505.17967, section 3), with the released code's defaults; that has none for the rank.
    The state holds the numbers of the columns, not a basis: the transform of a size is one for all matrices. Columns
    are selected by l1 norm and kept in ascending order. The released code leaves the order open, on which
    ``carry=keep`` depends. Here there is one transform for each size; there it is one for all, so that all matrices
    must have the same smaller side.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("dct-adamw(rank=2)", steps=3)
    StepPreview(moved=1.0, downhill=0.6, state_bytes=136)

    Args:
        rank: how many columns are selected; a matrix whose smaller side is below it has as many as that.
        update_gap: steps between selections.
        carry: what becomes of the moments: ``keep`` (by place), ``reset``, or ``project``, the paper's rotation.
            Columns are orthonormal, so under the rotation a column that stays keeps its moments and others begin at 0.
        feedback: how the error e, which the projection left out of the last gradient, is stored: ``none``, or from 4
            bytes an entry down to half a byte.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment after the correction of its bias.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "dct-adamw"
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

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of an int32 for each column, and of the error."""
        return 4 * self.count_directions(shape) + count_error_bytes(self.feedback, shape)

    def update(
        self, grad: Tensor, state: DCTAdamWState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, DCTAdamWState]:
        """Take Adam's step in the selected columns and bring it back to full size."""
        side = choose_side(shard.shape)
        refresh = context.refresh_number(shard, self.update_gap)
        grad = add_error(grad, state)
        cosines = build_dct_matrix(min(shard.shape), grad.device)
        moments: AgedMoments = state
        if state.get("refresh") == refresh:
            columns = state["columns"]
            basis = cosines[:, columns.long()]
            low = project(grad, basis, side)
        else:
            transformed = project(grad, cosines, side)
            rank = self.count_directions(shard.shape)
            selected = select_dct_columns(transformed if side == "right" else transformed.T, rank)
            moments = self._carry_moments(state, selected, side)
            columns = selected.int()
            low = transformed[:, selected] if side == "right" else transformed[selected]
            basis = cosines[:, selected]
        age = moments.get("age", 0) + 1
        inner, new_moments = adam(low, moments, age, (self.beta1, self.beta2), self.eps)
        new_state: DCTAdamWState = {
            "m": new_moments["m"],
            "v": new_moments["v"],
            "columns": columns,
            "age": age,
            "refresh": refresh,
        }
        if self.feedback != "none":
            error = grad - project_back(low, basis, side)
            new_state["error"] = pack_error(error, self.feedback, shard, context.step)
        return project_back(inner, basis, side), new_state

    def _carry_moments(self, state: DCTAdamWState, columns: Tensor, side: str) -> AgedMoments:
        """Return the moments that go on under other columns; the rotation between the two sets has zeros and ones."""
        if "columns" not in state or self.carry == "reset":
            return {}
        if self.carry == "keep":
            return state
        turn = (state["columns"][:, None] == columns[None]).to(state["m"])
        if side == "right":
            return {"m": state["m"] @ turn, "v": state["v"] @ turn, "age": state["age"]}
        return {"m": turn.T @ state["m"], "v": turn.T @ state["v"], "age": state["age"]}
