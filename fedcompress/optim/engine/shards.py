"""A shard says which entries of which parameters lie in an optimizer's parameter group on this rank.

What a group holds after ``deepspeed.initialize`` or ``fully_shard`` is not what it was made with. Four cases are known.
Any other is refused, since a rule that runs on something else than it believes is silently wrong:

* whole parameters: one process, data parallel, ZeRO-0, and float32 copies of such;
* DTensors split by rows: FSDP2, also with replicas (HSDP);
* one flat partition and originals with ``_hp_mapping``: ZeRO-1, ZeRO-2, also with ``round_robin_gradients``;
* one flat partition with a ``ds_id`` that names its first and last parameter: ZeRO-3.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fedcompress.errors import TrainingError
from fedcompress.optim.units import count_slices, cut_names, name_slice

if TYPE_CHECKING:
    from torch import Tensor


_FOUND = "_fedcompress_round_robin"  # attribute of a partition: what ``_find_round_robin`` has found


@dataclass(frozen=True)
class Shard:
    """A shard is a run of entries of one parameter that lies on this rank, in a tensor of the optimizer's group.

    Args:
        name: name of the parameter.
        start: index of the first entry in the flattened parameter.
        numel: number of entries; may be 0.
        tensor: the tensor in the group that has the entries: a parameter, a copy, a DTensor, or a flat partition.
        offset: index of the first entry in ``tensor``, flattened.
    """

    name: str
    start: int
    numel: int
    tensor: Tensor
    offset: int

    def weight(self) -> Tensor:
        """Return the entries, flat; writing to them writes to the parameter, if that is contiguous."""
        return self._slice_flat(self.tensor.detach())

    def raw_grad(self) -> Tensor | None:
        """Return the gradient of the entries, flat and in its own dtype; None if there is none.

        Raises:
            TrainingError: ``sparse-gradient``.
        """
        if self.tensor.grad is None:
            return None
        if self.tensor.grad.is_sparse:
            raise TrainingError("sparse-gradient", f"{self.name}: sparse gradients are not supported: use sparse=False")
        return self._slice_flat(self.tensor.grad.detach())

    def grad(self) -> Tensor | None:
        """Return the gradient of the entries in float32, flat; None if there is none."""
        return None if (grad := self.raw_grad()) is None else grad.float()

    def _slice_flat(self, tensor: Tensor) -> Tensor:
        return self._select(tensor.to_local() if hasattr(tensor, "to_local") else tensor).reshape(-1)

    def apply(self, delta: Tensor, lr: float, weight_decay: float) -> None:
        """Set ``weight -= lr * (delta + weight_decay * weight)``.

        Args:
            delta: direction to go against, shape (numel,).
            lr: learning rate.
            weight_decay: decoupled weight decay.
        """
        target = self._view_entries()
        if weight_decay:
            target.mul_(1 - lr * weight_decay)
        target.add_(delta.view(target.shape).to(target.dtype), alpha=-lr)

    def assign(self, values: Tensor) -> None:
        """Set the entries to values of shape (numel,)."""
        target = self._view_entries()
        target.copy_(values.view(target.shape))

    def _view_entries(self) -> Tensor:
        """Return a view of the entries where they are.

        It has the shape of ``tensor`` if the entries are all of it, since that need not be contiguous; else it is flat,
        or has some of the rows.
        """
        tensor = self.tensor.detach()
        return self._select(tensor.to_local() if hasattr(tensor, "to_local") else tensor)

    def _select(self, local: Tensor) -> Tensor:
        """Return a view of the entries of a tensor that is laid out as ``tensor``, or of its gradient.

        A tensor that is not contiguous, as experts that were transposed, can only be cut between its rows.
        """
        if self.offset == 0 and self.numel == local.numel():
            return local
        if local.is_contiguous():
            return local.view(-1)[self.offset : self.offset + self.numel]
        size = local[0].numel()
        rows = local[self.offset // size : -(-(self.offset + self.numel) // size)]
        if rows.numel() != self.numel:
            text = f"{self.name}: its tensor is not contiguous and cut within a row: make it contiguous"
            raise TrainingError("unknown-sharding", text)
        return rows


def find_shards(group: dict[str, Any], originals: dict[str, Any]) -> tuple[list[str], list[Shard]]:
    """Find the parameters that a step of a group works on, and what this rank has of them.

    The names are the same on all ranks; a parameter without entries on this rank has no shard.

    Args:
        group: parameter group of the optimizer, with the ``names`` and ``shapes`` that it was made with.
        originals: the parameters that it was made with, by name, where they still exist.

    Returns:
        Names of the parameters, and the shards.

    Raises:
        TrainingError: ``unknown-sharding``.
    """
    params = group["params"]
    names = group["names"]
    shapes = [tuple(shape) for shape in group["shapes"]]
    if len(params) == 1 and hasattr(params[0], "ds_id") and not hasattr(params[0], "ds_shape"):
        return _find_zero3_shards(params[0], names, originals)
    parameters = [originals.get(name) for name in names]
    if len(params) == 1 and params[0] is not parameters[0] and any(hasattr(p, "_hp_mapping") for p in parameters):
        partitioned = _find_round_robin(params[0])
        if partitioned is not None:
            return names, _find_round_robin_shards(params[0], names, parameters, partitioned)
        return names, _find_zero12_shards(params[0], names, parameters)
    if len(params) == len(names) and all(tuple(p.shape) == shape for p, shape in zip(params, shapes, strict=True)):
        shards = []
        for parameter, name, shape in zip(params, names, shapes, strict=True):
            shards += _find_own_shards(parameter, name, shape)
        return names, shards
    actual = [list(p.shape) for p in params[:3]]
    text = f"a group of {len(names)} parameters from {names[0]} has tensors of shapes {actual}"
    raise TrainingError("unknown-sharding", f"{text}: ZeRO 0 to 3, FSDP2 and data parallel are known")


def find_units(group: dict[str, Any], originals: dict[str, Any]) -> tuple[list[str], list[Shard]]:
    """Find what a step of a group works on, as ``find_shards`` does, with the experts cut where the group says so.

    Args:
        group: parameter group of the optimizer.
        originals: the parameters that it was made with, by name, where they still exist.

    Returns:
        Names of the units, and the shards.
    """
    names, shards = find_shards(group, originals)
    counts = count_slices(group)
    shapes = dict(zip(group["names"], group["shapes"], strict=True))
    return cut_names(names, counts), cut_shards(shards, counts, shapes)


def cut_shards(shards: Sequence[Shard], counts: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> list[Shard]:
    """Cut shards of stacks into shards of slices; those of other parameters stay.

    Args:
        shards: of parameters.
        counts: how many slices those have that are cut.
        shapes: of the parameters that are cut, by name.

    Returns:
        Shards whose ``start`` is in the slice; a slice without entries here has none.
    """
    cut = []
    for shard in shards:
        if shard.name not in counts:
            cut.append(shard)
            continue
        size = math.prod(shapes[shard.name][1:])
        end = shard.start + shard.numel
        for expert in range(shard.start // size, -(-end // size)):
            first, last = max(shard.start, expert * size), min(end, (expert + 1) * size)
            offset = shard.offset + first - shard.start
            name = name_slice(shard.name, expert)
            cut.append(replace(shard, name=name, start=first - expert * size, numel=last - first, offset=offset))
    return cut


def _find_zero12_shards(flat: Tensor, names: Sequence[str], originals: Sequence[Any]) -> list[Shard]:
    """Find shards under ZeRO-1 and -2, where each original knows its run in the partition."""
    shards = []
    for name, original in zip(names, originals, strict=True):
        mapping = getattr(original, "_hp_mapping", None)
        if mapping is not None:
            in_parameter = mapping.lp_fragment_address
            in_partition = mapping.hp_fragment_address
            shards.append(Shard(name, in_parameter.start, in_parameter.numel, flat, in_partition.start))
    return shards


def _find_round_robin(flat: Tensor) -> Any:
    """Find DeepSpeed's optimizer of a partition of ZeRO-1 or -2, if its ``round_robin_gradients`` is on.

    Nothing that an optimizer is given leads to DeepSpeed's own, which holds the partition in a list. It is looked for
    once for a partition.

    Returns:
        Its attributes; None if the option is off.
    """
    if not hasattr(flat, _FOUND):
        setattr(flat, _FOUND, None)
        for held in [held for held in gc.get_referrers(flat) if isinstance(held, list)]:
            for owner in gc.get_referrers(held):
                fields = owner if isinstance(owner, dict) else getattr(owner, "__dict__", {})
                if fields.get("single_partition_of_fp32_groups") is held and fields.get("round_robin_gradients"):
                    setattr(flat, _FOUND, SimpleNamespace(**fields))
    return getattr(flat, _FOUND)


def _find_round_robin_shards(
    flat: Tensor, names: Sequence[str], originals: Sequence[Any], partitioned: Any
) -> list[Shard]:
    """Find shards where partitions are cut from a group's parameters in another order than the group's.

    That is what ``round_robin_gradients`` does under ZeRO-1 and -2; ``_hp_mapping`` is then of the group's own order,
    and so of other entries than those of the partition.

    Args:
        flat: this rank's partition.
        names: of the group's parameters.
        originals: these parameters.
        partitioned: DeepSpeed's optimizer.

    Returns:
        The shards, in the order of the names.
    """
    import torch

    number = next(i for i, part in enumerate(partitioned.single_partition_of_fp32_groups) if part is flat)
    size = int(partitioned.partition_size[number])
    first = torch.distributed.get_rank(partitioned.real_dp_process_group[number]) * size
    in_order = partitioned.round_robin_bit16_groups[number]
    offsets = partitioned.round_robin_bit16_offsets[number]
    starts = {id(parameter): int(offset) for parameter, offset in zip(in_order, offsets, strict=True)}
    shards = []
    for name, original in zip(names, originals, strict=True):
        begin = starts[id(original)]
        start, end = max(begin, first), min(begin + original.numel(), first + size)
        if start < end:
            shards.append(Shard(name, start - begin, end - start, flat, start - first))
    return shards


def _find_zero3_shards(flat: Tensor, names: Sequence[str], originals: dict[str, Any]) -> tuple[list[str], list[Shard]]:
    """Find shards under ZeRO-3.

    A sub-group is a run of the group's parameters. The rank's shares of them follow one another in the partition.
    """
    import torch

    first, last = (int(i) for i in str(flat.ds_id).split("_"))
    ids = [getattr(originals.get(n), "ds_id", None) for n in names]
    if first not in ids or last not in ids:
        raise TrainingError("unknown-sharding", f"ZeRO-3's partition {flat.ds_id} has other parameters than the model")
    shards = []
    offset = 0
    names_of_subgroup = list(names[ids.index(first) : ids.index(last) + 1])
    for name in names_of_subgroup:
        parameter = originals[name]
        share = parameter.partition_numel()
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        numel = max(0, min(share, parameter.ds_numel - rank * share))
        if numel:
            shards.append(Shard(name, rank * share, numel, flat, offset))
        offset += share
    return names_of_subgroup, shards


def _find_own_shards(parameter: Tensor, name: str, shape: tuple[int, ...]) -> list[Shard]:
    """Return a shard of all of a plain tensor, or of the rows that FSDP2 gives this rank; none if it has no rows.

    FSDP2's tensors are ``Shard(0)`` over one dimension of a mesh, and replicas over the others, if there are any.
    """
    if not hasattr(parameter, "placements"):
        return [Shard(name, 0, math.prod(shape), parameter, 0)]
    placements = parameter.placements
    mesh = parameter.device_mesh
    sharding = [dim for dim, placement in enumerate(placements) if placement.is_shard(0)]
    if len(sharding) != 1 or not all(p.is_replicate() for dim, p in enumerate(placements) if dim != sharding[0]):
        text = f"{name}: placements {placements}: one of Shard(0) and replicas of it are supported"
        raise TrainingError("unknown-sharding", text)
    rows_each = -(-shape[0] // mesh.size(sharding[0]))
    local = parameter.to_local()
    width = math.prod(shape[1:])
    start = min(mesh.get_local_rank(sharding[0]) * rows_each, shape[0]) * width
    return [Shard(name, start, local.numel(), parameter, 0)] if local.numel() else []
