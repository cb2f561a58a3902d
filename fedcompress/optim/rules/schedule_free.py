"""Schedule-free AdamW: an average of the weights instead of a falling learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from fedcompress.optim.base import ELEMENTWISE, STORES, ShardInfo, State, check_beta, check_choice, check_positive

if TYPE_CHECKING:
    pass

_UNIT = 1 << 64  # rates are kept as integers in units of 1 / _UNIT


@dataclass(frozen=True, kw_only=True)
class ScheduleFree:
    """``y = (1 - beta) z + beta x``: gradients are taken at y, z steps, x is the average of z and the result.

    Defazio et al. 2024 (arXiv:2405.15682, algorithm 1). The model's weights are y, as in the released
    code's train mode; ``averaged`` puts x there for a while, and an update to be sent must be taken inside of it.
    x is not kept: it follows from y and z. The rule needs ``part.lr``, the same as the caller applies. It may
    be constant or warm up; a step with a rate of 0 is none. The rate is multiplied by
    ``sqrt(1 - beta2^t)``, as in the paper; the released code has since moved that into v. Averages weigh by
    the squares of the largest rates so far, as there. z is always float32; ``state`` is of v. The rule
    adds weight decay itself, to the step of z and at y. Weights in bfloat16 lose most of the average to rounding.

    Args:
        beta: how far y is from z towards x.
        beta2: of the second moment.
    """

    name: ClassVar[str] = "schedule-free"
    placement: ClassVar[str] = ELEMENTWISE
    moments: ClassVar[Mapping[str, bool]] = {"v": False}
    needs_weight: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    survives_rounds: ClassVar[bool] = False  # z and the average are of the weights before
    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_positive("optimizer.schedule-free.beta", self.beta)
        check_beta("optimizer.schedule-free.beta", self.beta)
        check_beta("optimizer.schedule-free.beta2", self.beta2)
        check_positive("optimizer.schedule-free.eps", self.eps)
        check_choice("optimizer.schedule-free.state", self.state, STORES)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter."""

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """A second moment for each entry."""
        return {"v": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The sequence z."""
        return 4 * prod(shape)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step: ``(y_t - y_t+1) / lr``, and z and v."""
        import torch

        second = state["v"] if "v" in state else torch.zeros_like(grad)
        base = state["z"] if "z" in state else weight.float().clone()
        age, peak, total = (state.get(key, 0) for key in ("age", "peak", "total"))
        if not part.lr:
            return torch.zeros_like(grad), {"v": second, "z": base, "age": age, "peak": peak, "total": total}
        age += 1
        damp = (1 - self.beta2**age) ** 0.5
        peak = max(peak, round(part.lr * damp * _UNIT))
        total += peak**2
        share = peak**2 / total if total else 0.0
        second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        direction = grad / second.sqrt().add_(self.eps)
        if part.weight_decay:
            direction.add_(weight, alpha=part.weight_decay)
        pulled = (weight - base).mul_(share / part.lr)
        base.add_(direction, alpha=-part.lr * damp)
        delta = direction.mul_(damp * (1 - self.beta + share * self.beta)).add_(pulled)
        return delta, {"v": second, "z": base, "age": age, "peak": peak, "total": total}

    def slice_state(self, state: State, whole: ShardInfo, part: ShardInfo) -> State:
        """State of a part: z is cut as v is."""
        cut = slice(part.start, part.start + part.numel)
        return state | {key: state[key].reshape(-1)[cut] for key in ("v", "z") if key in state}
