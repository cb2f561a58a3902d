"""The averaged weights of schedule-free training can be put into the model, for a while or until training goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedcompress.errors import TrainingError
from fedcompress.optim.rules.schedule_free import ScheduleFree

if TYPE_CHECKING:
    from torch import Tensor

    from fedcompress.optim.engine.shards import Shard
    from fedcompress.optim.engine.torch_contract import TorchContract

LOG = logging.getLogger("fedcompress.optim")


def evaluation_weights(optimizer: TorchContract) -> list[tuple[Shard, Tensor]]:
    """Compute the averages x of the entries on this rank.

    They are flat, of shape (shard.numel,), and in the dtype of the weights. Parameters of other rules are left out, and
    so are those that have not been stepped yet.
    """
    averages = []
    for rule, shard, z in _find_stepped(optimizer):
        weight = shard.weight()
        average = weight.clone() if optimizer.is_averaged else _compute_average(rule, weight, z).to(weight.dtype)
        averages.append((shard, average))
    return averages


def _find_stepped(optimizer: TorchContract) -> list[tuple[ScheduleFree, Shard, Tensor]]:
    """Return the rule, the shard and z of each parameter that schedule-free has stepped."""
    return [
        (rule, shard, state["z"])
        for rule, shard, state in optimizer.states()
        if isinstance(rule, ScheduleFree) and "z" in state
    ]


def _compute_average(rule: ScheduleFree, weight: Tensor, z: Tensor) -> Tensor:
    """Compute x from the weight y and from z, float32."""
    return (weight.float() - (1 - rule.beta) * z.to(weight.device)) / rule.beta


def switch_weights(optimizer: TorchContract, *, averaged: bool) -> None:
    """Put the averages x into the model, or the weights y at which gradients are taken, computed from x and z.

    That is what the released optimizer does in ``eval`` and ``train``. y comes back up to a rounding error, in a run
    that goes on as in one that is resumed.

    Args:
        optimizer: the optimizer; other rules than schedule-free leave the weights as they are.
        averaged: whether the model is to have the averages.
    """
    if optimizer.is_averaged == averaged:
        return
    switched = _find_stepped(optimizer)
    if averaged and not switched:
        return
    if not all(optimizer.is_model_weight(shard) for _, shard, _ in switched):
        LOG.warning("schedule-free: the optimizer steps copies of the weights: the model is evaluated without averages")
        return
    for rule, shard, z in switched:
        weight = shard.weight()
        if averaged:
            shard.assign(_compute_average(rule, weight, z))
        else:
            shard.assign(rule.beta * weight.float() + (1 - rule.beta) * z.to(weight.device))
    optimizer.is_averaged = averaged


@contextmanager
def use_averaged_weights(optimizer: TorchContract) -> Iterator[None]:
    """Give the model the averaged weights inside of the context, and its own again after it, bit for bit.

    This is for evaluation, checkpoints and updates that are to be sent. The optimizer must not step inside.

    Raises:
        TrainingError: ``unknown-sharding``: the optimizer steps copies of the weights, as under ZeRO, so that the
            model would not see the averages; set its weights from ``evaluation_weights`` instead.
    """
    averages = evaluation_weights(optimizer)
    for shard, _ in averages:
        if not optimizer.is_model_weight(shard):
            text = f"{shard.name}: the optimizer steps a copy: set the model from evaluation_weights"
            raise TrainingError("unknown-sharding", text)
    before = [shard.weight().clone() for shard, _ in averages]
    for shard, average in averages:
        shard.assign(average)
    try:
        yield
    finally:
        for (shard, _), weight in zip(averages, before, strict=True):
            shard.assign(weight)
