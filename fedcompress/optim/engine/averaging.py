"""The averaged weights of schedule-free training can be put into the model for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedcompress.errors import TrainingError
from fedcompress.optim.rules.schedule_free import ScheduleFree

if TYPE_CHECKING:
    from torch import Tensor

    from fedcompress.optim.engine.optimizer import LowMemoryOptimizer
    from fedcompress.optim.engine.shards import Shard


def evaluation_weights(optimizer: LowMemoryOptimizer) -> list[tuple[Shard, Tensor]]:
    """Compute the averages x of the entries on this rank.

    They are flat, of shape (shard.numel,), and in the dtype of the weights. Parameters of other rules are left out, and
    so are those that have not been stepped yet.
    """
    averages = []
    for rule, shard, state in optimizer.states():
        if isinstance(rule, ScheduleFree) and "z" in state:
            weight = shard.weight()
            average = (weight.float() - (1 - rule.beta) * state["z"].to(weight.device)) / rule.beta
            averages.append((shard, average.to(weight.dtype)))
    return averages


@contextmanager
def use_averaged_weights(optimizer: LowMemoryOptimizer) -> Iterator[None]:
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
