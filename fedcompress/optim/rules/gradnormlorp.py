"""GradNormLoRP: GaLore on the directions of the rows of a weight, Adam on their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.optim.base import ShardInfo, State
from fedcompress.optim.rules.galore import GaLore
from fedcompress.optim.state.adam_moments import adam

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class GradNormLoRP(GaLore):
    """``d * Adam(g_length) + tangent(GaLore(g_direction))``, for rows ``w = length * d`` with ``|d| = 1``.

    Huang et al. 2024 (arXiv:2412.19616): weight normalization ``w = length * v / |v|`` and a projection of
    the gradient in v. A row of a weight of shape (out, in) is one output's vector. With v = w at each
    step, ``g_length = g d`` and ``g_direction = g - g_length d``; a step of length and direction is given
    back as the step of w that it is to first order, so that no second copy of the weight is kept.

    The released code never writes its step to the weight and keeps moments of full size, so it cannot be
    followed; from it are the defaults and the projection of one side (``side=full`` is the
    paper's, of both). The paper's low-rank factors of the weight are left to LoRA: the weight here may be one of them.
    """

    name: ClassVar[str] = "gradnormlorp"
    needs_weight: ClassVar[bool] = True
    update_gap: int = 250

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Those of GaLore, and two moments of each row's length."""
        return super().other_bytes(shape) + 8 * shape[0]

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        lengths = {"m": state.pop("length_m"), "v": state.pop("length_v")} if "length_m" in state else {}
        age = state.get("length_age", 0) + 1
        unit = weight / weight.norm(dim=1, keepdim=True).clamp_(min=TINY)
        along = (grad * unit).sum(1, keepdim=True)
        turn, kept = super().update(grad - along * unit, state, step, part, weight)
        turn = turn.float()
        longer, lengths = adam(along, lengths, age, (self.beta1, self.beta2), self.eps, plain_eps=True)
        delta = turn.add_(unit * (longer - (turn * unit).sum(1, keepdim=True)))
        return delta, kept | {"length_m": lengths["m"], "length_v": lengths["v"], "length_age": age}
