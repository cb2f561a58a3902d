"""Updates inside of the backward pass: each gradient is used and freed as soon as it is there.

Full gradients of a model never exist together (Lv et al. 2023, arXiv:2306.09782, section 3).
What needs all gradients at once, or one gradient more than once, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedcompress.errors import ConfigError, TrainingError


class Fused:
    """Steps parameters from hooks; ``remove`` ends it. Meanwhile ``optimizer.step`` and ``zero_grad`` do nothing."""

    def __init__(self, optimizer: Any, handles: list[Any]) -> None:
        self._optimizer, self._handles = optimizer, handles

    def remove(self) -> None:
        """Back to gradients that stay until a step."""
        for handle in self._handles:
            handle.remove()
        self._optimizer.fused = False


def fuse(optimizer: Any, *, accumulation: int = 1, clip_norm: float = 0.0, scaler: Any = None) -> Fused:
    """Step each parameter in the backward pass.

    Args:
        optimizer: of ``build``, over whole parameters of one process.
        accumulation: steps of gradient accumulation; must be 1.
        clip_norm: global norm to clip to; must be 0. Rules bound their steps themselves.
        scaler: of fp16; must be None.

    Raises:
        ConfigError: what cannot be combined, and why.
    """
    import torch

    if accumulation != 1:
        rule = "must be 1 with fused backward: a gradient is gone before the next one could be added"
        raise ConfigError("accumulation", accumulation, rule)
    if clip_norm:
        rule = "must be 0 with fused backward: the global norm is known only when all gradients are; use a rule's own"
        raise ConfigError("clip-norm", clip_norm, rule)
    if scaler is not None:
        rule = "must be None with fused backward: an overflow is known only after the last gradient; use bfloat16"
        raise ConfigError("scaler", type(scaler).__name__, rule)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            raise ConfigError("world", world, "must be 1 with fused backward: gradients are reduced after the hooks")
    places = [(g, *pair) for g in optimizer.param_groups for pair in zip(g["names"], g["params"], strict=True)]
    for _, name, parameter in places:
        if getattr(parameter, "ds_shape", None) is not None or hasattr(parameter, "placements"):
            raise TrainingError("fused-sharded", f"{name}: fused backward needs whole parameters")
    optimizer.fused = True
    return Fused(optimizer, [p.register_post_accumulate_grad_hook(_hook(optimizer, g, n)) for g, n, p in places])


def _hook(optimizer: Any, group: dict[str, Any], name: str) -> Callable[[Any], None]:
    """Steps a parameter and drops its gradient."""

    def step(parameter: Any) -> None:
        optimizer.step_one(group, name, parameter)
        parameter.grad = None

    return step
