"""Puts the averages of schedule-free training into the model for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedcompress.errors import TrainingError
from fedcompress.optim.rules.schedule_free import ScheduleFree

if TYPE_CHECKING:
    from fedcompress.optim.engine.optimizer import LowMemoryOptimizer
    from fedcompress.optim.engine.shards import Shard


def averaged_weights(optimizer: LowMemoryOptimizer) -> list[tuple[Shard, Any]]:
    """The averages x of what this rank has, flat, in the dtype of the weights.

    Parameters of other rules, and those that have not been stepped yet, are left out.
    """
    found = []
    for rule, shard, state in optimizer.states():
        if isinstance(rule, ScheduleFree) and "z" in state:
            here = shard.weight()
            average = (here.float() - (1 - rule.beta) * state["z"].to(here.device)) / rule.beta
            found.append((shard, average.to(here.dtype)))
    return found


@contextmanager
def use_averaged_weights(optimizer: LowMemoryOptimizer) -> Iterator[None]:
    """The model has the averaged weights inside, and its own again after, bit for bit.

    It is for evaluation, checkpoints and updates to be sent; the optimizer must not step inside.

    Raises:
        TrainingError: ``unknown-sharding``: the optimizer steps copies of the weights, as under ZeRO, so that the
            model would not see averages; set it from ``averaged_weights``.
    """
    averages = averaged_weights(optimizer)
    for shard, _ in averages:
        if not optimizer.is_of_model(shard):
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
