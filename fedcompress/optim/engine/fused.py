"""Fused backward steps each parameter inside of the backward pass, and frees its gradient at once.

The full gradients of a model then never exist together (Lv et al. 2023, arXiv:2306.09782, section 3). Whatever needs
all gradients at once, or one gradient more than once, is refused.

Library function: no command or run setting reaches it yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedcompress.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from fedcompress.optim.engine.optimizer import LowMemoryOptimizer


class Fused:
    """A fused optimizer steps parameters from hooks until ``remove``; its ``step`` and ``zero_grad`` do nothing."""

    def __init__(self, optimizer: LowMemoryOptimizer, handles: list[Any]) -> None:
        self._optimizer = optimizer
        self._handles = handles

    def remove(self) -> None:
        """Remove the hooks, so that gradients stay again until ``optimizer.step``."""
        for handle in self._handles:
            handle.remove()
        self._optimizer.fused = False


def fuse(optimizer: LowMemoryOptimizer, *, accumulation: int = 1, clip_norm: float = 0.0, scaler: Any = None) -> Fused:
    """Step each parameter in the backward pass from now on.

    Args:
        optimizer: what ``build_optimizer`` returned, over whole parameters of one process.
        accumulation: steps of gradient accumulation; must be 1.
        clip_norm: global norm to clip gradients to; must be 0. Rules bound their steps themselves.
        scaler: loss scaler of fp16; must be None.

    Returns:
        An object whose ``remove`` ends it.

    Raises:
        ConfigError: a setting that cannot be combined with fused backward, and why; or more than one rank.
        TrainingError: ``fused-sharded``: a parameter is sharded.
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
    places = [
        (group, name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]
    for _, name, parameter in places:
        if getattr(parameter, "ds_shape", None) is not None or hasattr(parameter, "placements"):
            raise TrainingError("fused-sharded", f"{name}: fused backward needs whole parameters")
    optimizer.fused = True
    handles = [
        parameter.register_post_accumulate_grad_hook(_build_hook(optimizer, group, name))
        for group, name, parameter in places
    ]
    return Fused(optimizer, handles)


def _build_hook(optimizer: LowMemoryOptimizer, group: dict[str, Any], name: str) -> Callable[[Tensor], None]:
    """Build a hook that steps a parameter and drops its gradient; a second gradient before the next step is refused."""

    def step(parameter: Tensor) -> None:
        if name in optimizer.stepped_in_backward:
            text = f"{name}: a second gradient before optimizer.step() or zero_grad()"
            raise TrainingError("fused-accumulation", f"{text}: fused backward accumulates nothing")
        optimizer.stepped_in_backward.add(name)
        optimizer.step_parameter(group, name, parameter)
        parameter.grad = None

    return step
