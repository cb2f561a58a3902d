"""A preview shows what one step of an optimizer does to a small parameter; the examples of the rules use it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcompress.optim.base import MATRIX, ShardInfo, StepContext
from fedcompress.optim.state.moment_storage import count_bytes
from fedcompress.optim.table import parse_optimizer


@dataclass(frozen=True)
class StepPreview:
    """Tells what one step did to a parameter; shares are rounded to two decimals.

    Args:
        moved: share of the entries that the step changes.
        downhill: share of the changed entries that move against their own gradient.
        state_bytes: bytes of the tensors that the rule keeps for the next step.
    """

    moved: float
    downhill: float
    state_bytes: int


def preview_step(spec: str, *, shape: tuple[int, int] = (8, 6), steps: int = 1) -> StepPreview:
    """Run an optimizer on one weight matrix with random gradients, and describe its last step.

    Args:
        spec: ``name`` or ``name(key=value,...)``, as for ``build_optimizer``.
        shape: shape of the matrix, which is the only layer of its model.
        steps: how many steps are made, at a learning rate of 1e-3 and without weight decay.

    Returns:
        What the last step did.
    """
    import torch

    rule = parse_optimizer(spec)
    rule.check("layers.0.weight", shape)
    shard = ShardInfo(name="layers.0.weight", shape=shape, layer=0, layers=1)
    size = shape if rule.placement == MATRIX else (math.prod(shape),)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator)
    state: dict[str, object] = {}
    for step in range(1, steps + 1):
        grad = torch.randn(size, generator=generator)
        context = StepContext(step=step, lr=1e-3)
        delta, state = rule.update(grad, state, shard, context, weight)
        weight = weight - context.lr * delta
    changed = delta != 0
    downhill = (delta * grad > 0)[changed]
    return StepPreview(
        moved=round(float(changed.float().mean()), 2),
        downhill=round(float(downhill.float().mean()), 2),
        state_bytes=sum(map(count_bytes, state.values())),
    )
