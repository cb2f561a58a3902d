"""Small helpers for the ranks of the default process group; without one, there is one rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcompress.optim.engine.shards import Shard


def get_world_size() -> int:
    """Return the number of ranks."""
    import torch

    dist = torch.distributed
    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Return the number of this rank, from 0."""
    import torch

    return int(torch.distributed.get_rank()) if get_world_size() > 1 else 0


def get_collective_device(shards: Sequence[Shard]) -> Any:
    """Return the device on which collectives work: the current GPU under nccl, else the CPU.

    With one rank, it is the device of the shards.
    """
    import torch

    if get_world_size() > 1 and "nccl" in torch.distributed.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if get_world_size() > 1 or not shards else shards[0].tensor.device


def sum_over_ranks(values: list[float], shards: Sequence[Shard]) -> list[float]:
    """Return the sums of float32 values over all ranks, which all call it with equally many values."""
    import torch

    if get_world_size() == 1:
        return values
    sums = torch.tensor(values, device=get_collective_device(shards))
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def gather_objects(value: Any) -> list[Any]:
    """Return what each rank passes, in the order of the ranks; all ranks call it."""
    import torch

    values: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
