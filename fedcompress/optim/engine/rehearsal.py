"""A rehearsal is a call of ``step`` that is to allocate states, and no step of training.

Rules allocate when they first see a gradient, so that nothing needs to be done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedcompress.optim.engine.shards import Shard
from fedcompress.optim.units import list_units


def is_rehearsal(
    groups: Sequence[dict[str, Any]], shards: Sequence[Shard], living: Mapping[str, Any], *, is_first: bool
) -> bool:
    """Return whether a call of ``step`` is a rehearsal, as far as this rank can see.

    All gradients are then 0. DeepSpeed's 16-bit optimizers of stage 0 make such a call when they are made, on copies of
    the weights. torch.distributed.checkpoint makes one whenever it asks for a state, with all learning rates at 0.

    Args:
        groups: parameter groups of the optimizer.
        shards: what this rank has of the parameters.
        living: the parameters that the optimizer was made with, by name, where they still exist.
        is_first: whether no call came before.

    Returns:
        Whether it is one; False with any gradient that is missing or not 0.
    """
    without_rates = not any(float(group["lr"]) for group in groups)
    if not without_rates and not (is_first and _are_whole_copies(groups, shards, living)):
        return False
    return all(_has_zero_grad(shard) for shard in shards)


def _are_whole_copies(groups: Sequence[dict[str, Any]], shards: Sequence[Shard], living: Mapping[str, Any]) -> bool:
    shapes = {name: tuple(shape) for g in groups for name, shape in zip(g["names"], g["shapes"], strict=True)}
    parameters = {unit.name: unit.parameter for group in groups for unit in list_units(group)}
    are_copies = all(s.tensor is not living.get(parameters[s.name]) for s in shards)
    return are_copies and all(s.tensor.shape == shapes[parameters[s.name]] for s in shards)


def _has_zero_grad(shard: Shard) -> bool:
    grad = shard.raw_grad()
    return grad is not None and not bool(grad.any())
