"""GradNormLoRP runs GaLore on the directions of the rows of a weight, and Adam on their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.optim.base import ShardInfo, StepContext
from fedcompress.optim.rules.galore import GaLoreRule, GaLoreState
from fedcompress.optim.state.adam_moments import AdamMoments

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12  # least length of a row that is divided by


class GradNormLoRPState(GaLoreState, total=False):
    """GradNormLoRP keeps GaLore's state, which is of the directions, and Adam's moments of the m row lengths."""

    length_m: Tensor  # running mean of the lengths' gradient; float32, shape (m, 1)
    length_v: Tensor  # running mean of its square; float32, shape (m, 1)
    length_age: int  # steps that these two have seen


@dataclass(frozen=True, kw_only=True)
class GradNormLoRP(GaLoreRule):
    """GradNormLoRP steps along ``d * Adam(g_length) + tangent(GaLore(g_direction))``, for rows ``w = length * d``.

    Here ``|d| = 1``. Huang et al. 2024 (arXiv:2412.19616): weight normalization ``w = length * v / |v|``, and a
    projection of the gradient in v. A row of a weight of shape (out, in) is one output's vector. With v = w at each
    step, ``g_length = g d`` and ``g_direction = g - g_length d``. A step of length and direction is given back as the
    step of w that it is to first order, so that no second copy of the weight is kept.

    The released code never writes its step to the weight and keeps moments of full size, so it cannot be followed.
    From it come the defaults and the projection of one side; ``side=full`` is the paper's, of both. The paper's
    low-rank factors of the weight are left to LoRA: the weight here may be one of them.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("gradnormlorp(rank=2)")
    StepPreview(moved=1.0, downhill=0.69, state_bytes=240)
    """

    name: ClassVar[str] = "gradnormlorp"
    needs_weight: ClassVar[bool] = True
    update_gap: int = 250

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of GaLore's bases and of two float32 moments for the length of each row."""
        return super().other_bytes(shape) + 8 * shape[0]

    def update(
        self, grad: Tensor, state: GradNormLoRPState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, GradNormLoRPState]:
        """Split the gradient into length and direction by rows, step both, and join the steps."""
        length_moments: AdamMoments = {}
        if "length_m" in state:
            length_moments = {"m": state["length_m"], "v": state["length_v"]}
        length_age = state.get("length_age", 0) + 1
        unit = weight / weight.norm(dim=1, keepdim=True).clamp_(min=TINY)
        length_grad = (grad * unit).sum(1, keepdim=True)
        turn, new_state = self._compute_step(grad - length_grad * unit, state, shard, context)
        turn = turn.float()
        length_step, length_moments = self._run_adam(length_grad, length_moments, length_age)
        delta = turn.add_(unit * (length_step - (turn * unit).sum(1, keepdim=True)))
        return delta, {
            **new_state,
            "length_m": length_moments["m"],
            "length_v": length_moments["v"],
            "length_age": length_age,
        }
