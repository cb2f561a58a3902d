"""Schedule-free AdamW keeps an average of the weights instead of letting the learning rate fall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, TypedDict

from fedcompress.optim.base import STORES, ShardInfo, StepContext, check_beta, check_choice, check_positive
from fedcompress.optim.rules.elementwise import ElementwiseRule

if TYPE_CHECKING:
    from torch import Tensor

_UNIT = 1 << 64  # learning rates are kept as integers, in units of 1 / _UNIT, so that their sum is exact


class ScheduleFreeState(TypedDict, total=False):
    """Schedule-free AdamW keeps a second moment, the sequence z, and what weighs the next average."""

    v: Tensor  # running mean of the squared gradient; float32, shape (shard.numel,)
    z: Tensor  # the weights that the steps are made on; always float32, shape (shard.numel,)
    age: int  # steps with a learning rate above 0
    peak: int  # largest bias-corrected learning rate so far, in units of 2^-64
    total: int  # sum of the squares of ``peak`` over all steps, in units of 2^-128


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(ElementwiseRule):
    """Schedule-free AdamW takes gradients at ``y = (1 - beta) z + beta x``, steps z, and gives its average x.

    Defazio et al. 2024 (arXiv:2405.15682, algorithm 1). The weights of the model are y, as in the released code's
    train mode. ``use_averaged_weights`` in ``engine.averaging`` puts x there for a while, and an update that is to be
    sent must be read inside of it. x is not stored: it follows from y and z.

    * The rule needs ``context.lr``, and the caller must apply the same rate. It may be constant or warm up; a step
      with a rate of 0 changes nothing.
    * The rate is multiplied by ``sqrt(1 - beta2^t)``, as in the paper; the released code has since moved that factor
      into v.
    * Averages weigh by the squares of the largest rates so far, as in the released code.
    * The rule adds weight decay itself, to the step of z and taken at y.
    * Weights in bfloat16 lose most of the average to rounding.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("schedule-free")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=384)

    Args:
        beta: how far y is from z towards x; above 0 and below 1.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment.
        state: how v is stored between steps.
    """

    name: ClassVar[str] = "schedule-free"
    moments: ClassVar[Mapping[str, bool]] = {"v": False}
    needs_weight: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    survives_rounds: ClassVar[bool] = False  # z and the average belong to the weights before the round
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

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the size of the second moment, with a number for each entry."""
        return {"v": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the sequence z."""
        return 4 * prod(shape)

    def update(
        self, grad: Tensor, state: ScheduleFreeState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, ScheduleFreeState]:
        """Step z, average x, and return ``(y_t - y_t+1) / lr`` as the direction."""
        import torch

        second = state["v"] if "v" in state else torch.zeros_like(grad)
        base = state["z"] if "z" in state else weight.float().clone()
        age = state.get("age", 0)
        peak = state.get("peak", 0)
        total = state.get("total", 0)
        if not context.lr:
            return torch.zeros_like(grad), {"v": second, "z": base, "age": age, "peak": peak, "total": total}
        age += 1
        damp = (1 - self.beta2**age) ** 0.5
        peak = max(peak, round(context.lr * damp * _UNIT))
        total += peak**2
        share = peak**2 / total if total else 0.0
        second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        direction = grad / second.sqrt().add_(self.eps)
        if context.weight_decay:
            direction.add_(weight, alpha=context.weight_decay)
        pull_to_z = (weight - base).mul_(share / context.lr)
        base.add_(direction, alpha=-context.lr * damp)
        delta = direction.mul_(damp * (1 - self.beta + share * self.beta)).add_(pull_to_z)
        return delta, {"v": second, "z": base, "age": age, "peak": peak, "total": total}

    def slice_state(self, state: ScheduleFreeState, whole: ShardInfo, shard: ShardInfo) -> ScheduleFreeState:
        """Cut v and z to the entries of the shard."""
        cut = slice(shard.start, shard.start + shard.numel)
        sliced: ScheduleFreeState = {**state}
        if "v" in state:
            sliced["v"] = state["v"].reshape(-1)[cut]
        if "z" in state:
            sliced["z"] = state["z"].reshape(-1)[cut]
        return sliced
