"""Which entries of which parameters lie in an optimizer's group on this rank.

What a group holds after ``deepspeed.initialize`` or ``fully_shard`` is not what it was made
with. Five cases are known, and any other is refused, since a rule that runs on something else
than it believes is silently wrong:

* whole parameters: one process, data parallel, ZeRO-0, and float32 copies of such;
* DTensors split by rows: FSDP2;
* one flat partition and originals with ``_hp_mapping``: ZeRO-1, ZeRO-2;
* one flat partition with a ``ds_id`` that names its first and last parameter: ZeRO-3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedcompress.errors import TrainingError


@dataclass(frozen=True)
class Shard:
    """Entries of one parameter on this rank.

    Args:
        name: of the parameter.
        start: first entry.
        numel: how many; may be 0.
        home: tensor in the group that holds them.
        offset: of the first in ``home``, flat.
    """

    name: str
    start: int
    numel: int
    home: Any
    offset: int

    def weight(self) -> Any:
        """The entries, flat; writing to it writes to the parameter, if that is contiguous."""
        return self._flat(self.home.detach())

    def raw_grad(self) -> Any:
        """Their gradient as it is, flat; None if there is none."""
        if self.home.grad is None:
            return None
        if self.home.grad.is_sparse:
            raise TrainingError("sparse-gradient", f"{self.name}: sparse gradients are not supported: use sparse=False")
        return self._flat(self.home.grad.detach())

    def grad(self) -> Any:
        """Their gradient in float32, flat; None if there is none."""
        return None if (grad := self.raw_grad()) is None else grad.float()

    def _flat(self, tensor: Any) -> Any:
        if hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
        return tensor.reshape(-1)[self.offset : self.offset + self.numel]

    def apply(self, delta: Any, lr: float, weight_decay: float) -> None:
        """``weight -= lr * (delta + weight_decay * weight)``."""
        target = self._target()
        if weight_decay:
            target.mul_(1 - lr * weight_decay)
        target.add_(delta.view(target.shape).to(target.dtype), alpha=-lr)

    def assign(self, values: Any) -> None:
        """Set the entries."""
        target = self._target()
        target.copy_(values.view(target.shape))

    def _target(self) -> Any:
        """The entries where they are, in the shape of ``home`` if they are all of it: that need not be contiguous."""
        home = self.home.detach()
        local = home.to_local() if hasattr(home, "to_local") else home
        if self.offset == 0 and self.numel == local.numel():
            return local
        return local.view(-1)[self.offset : self.offset + self.numel]


def shards_of(group: dict[str, Any], originals: dict[str, Any]) -> tuple[list[str], list[Shard]]:
    """Names of the parameters that a step of this group is about, and what of them is here.

    The names are the same on all ranks; a parameter without entries here has no shard.

    Args:
        group: of the optimizer, with ``names`` and ``shapes`` of when it was made.
        originals: the parameters that it was made with, by name, where they still exist.

    Raises:
        TrainingError: ``unknown-sharding``.
    """
    params, names, shapes = group["params"], group["names"], [tuple(s) for s in group["shapes"]]
    if len(params) == 1 and hasattr(params[0], "ds_id") and not hasattr(params[0], "ds_shape"):
        return _zero_three(params[0], names, originals)
    mapped = [originals.get(n) for n in names]
    if len(params) == 1 and params[0] is not mapped[0] and any(hasattr(p, "_hp_mapping") for p in mapped):
        return names, _mapped(params[0], names, mapped)
    if len(params) == len(names) and all(tuple(p.shape) == shape for p, shape in zip(params, shapes, strict=True)):
        return names, [s for p, n, shape in zip(params, names, shapes, strict=True) for s in _own(p, n, shape)]
    found = [list(p.shape) for p in params[:3]]
    text = f"a group of {len(names)} parameters from {names[0]} has tensors of shapes {found}"
    raise TrainingError("unknown-sharding", f"{text}: ZeRO 0 to 3, FSDP2 and data parallel are known")


def _mapped(flat: Any, names: Sequence[str], originals: Sequence[Any]) -> list[Shard]:
    """ZeRO-1 and -2: each original knows its run in the partition."""
    found = []
    for name, original in zip(names, originals, strict=True):
        mapping = getattr(original, "_hp_mapping", None)
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            found.append(Shard(name, here.start, here.numel, flat, there.start))
    return found


def _zero_three(flat: Any, names: Sequence[str], originals: dict[str, Any]) -> tuple[list[str], list[Shard]]:
    """ZeRO-3: a sub-group is a run of the group's parameters, a rank's share of each after the other."""
    import torch

    first, last = (int(i) for i in str(flat.ds_id).split("_"))
    ids = [getattr(originals.get(n), "ds_id", None) for n in names]
    if first not in ids or last not in ids:
        raise TrainingError("unknown-sharding", f"ZeRO-3's partition {flat.ds_id} has other parameters than the model")
    found, offset = [], 0
    scope = list(names[ids.index(first) : ids.index(last) + 1])
    for name in scope:
        parameter = originals[name]
        share = parameter.partition_numel()
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        numel = max(0, min(share, parameter.ds_numel - rank * share))
        if numel:
            found.append(Shard(name, rank * share, numel, flat, offset))
        offset += share
    return scope, found


def _own(parameter: Any, name: str, shape: tuple[int, ...]) -> list[Shard]:
    """All of a plain tensor; of FSDP2's, rows: ``Shard(0)`` over a mesh of one dimension."""
    if not hasattr(parameter, "placements"):
        return [Shard(name, 0, math.prod(shape), parameter, 0)]
    placements, mesh = parameter.placements, parameter.device_mesh
    if len(placements) != 1 or not placements[0].is_shard(0):
        raise TrainingError("unknown-sharding", f"{name}: placements {placements}: only one of Shard(0) is supported")
    each = -(-shape[0] // mesh.size())
    local, width = parameter.to_local(), math.prod(shape[1:])
    start = min(mesh.get_local_rank() * each, shape[0]) * width
    return [Shard(name, start, local.numel(), parameter, 0)] if local.numel() else []
