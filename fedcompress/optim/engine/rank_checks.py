"""Checks that all ranks train the same parameters, before a step moves anything.

Data parallelism, ZeRO and FSDP2 have the same parameters on all ranks, whole or cut. Pipelines have others on each
rank, and some kinds of tensor and expert parallelism have parts under one name that look like whole parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.errors import TrainingError
from fedcompress.numerics.philox import hash_seed
from fedcompress.optim.engine.ranks import gather_objects, get_world_size
from fedcompress.optim.engine.shards import Shard

SAMPLE = 8  # entries of each replica that are compared
TOLERANCE = 1e-2  # of the largest of them: replicas on unlike devices may drift


def check_same_names(names: Sequence[str]) -> None:
    """Raise ``TrainingError`` unless all ranks train parameters of the same names; all ranks call it.

    Args:
        names: what this rank trains, in the order of the groups.

    Raises:
        TrainingError: ``unknown-sharding``.
    """
    if get_world_size() == 1:
        return
    found = gather_objects((len(names), hash_seed(*names)))
    if len(set(found)) > 1:
        counts = [count for count, _ in found]
        text = f"the ranks train other parameters, {counts} of them: pipelines are not known"
        raise TrainingError("unknown-sharding", text)


def check_replicas(shards: Sequence[Shard]) -> None:
    """Raise ``TrainingError`` where ranks have other weights under one name; all ranks call it.

    Args:
        shards: whole parameters on this rank.

    Raises:
        TrainingError: ``unknown-sharding``.
    """
    mine = {s.name: s.weight()[:SAMPLE].float().tolist() for s in shards}
    for theirs in gather_objects(mine):
        for name, values in mine.items():
            most = max(map(abs, [*values, *theirs[name]]))
            if any(abs(a - b) > TOLERANCE * most for a, b in zip(values, theirs[name], strict=True)):
                text = f"{name}: the ranks have other weights: tensor and expert parallelism are not known"
                raise TrainingError("unknown-sharding", text)
