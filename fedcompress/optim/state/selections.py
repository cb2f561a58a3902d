"""Selections say which entries of a parameter hold state for a while: columns, rows, whole matrices or single entries.

A selection is drawn again from the seed whenever it is needed, so nothing is stored for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fedcompress.numerics.philox import hash_seed
from fedcompress.optim.base import EPOCH_STRIDE, ShardInfo

if TYPE_CHECKING:
    from torch import Tensor

SELECTIONS: tuple[str, ...] = ("columns", "rows", "blocks", "randk")


def count_lines(shape: tuple[int, ...], kind: str, density: float) -> int:
    """Return how many columns or rows are selected of a matrix.

    Args:
        shape: shape of the matrix.
        kind: ``columns`` or ``rows``.
        density: share of them that is selected; at least one is.

    Returns:
        Number of columns or rows.
    """
    return max(1, round(density * shape[1 if kind == "columns" else 0]))


def count_selected(shape: tuple[int, ...], kind: str, density: float) -> int:
    """Return how many entries are selected of a parameter; for ``blocks`` and ``randk`` the expected number.

    Args:
        shape: shape of the whole parameter.
        kind: one of ``SELECTIONS``.
        density: share of the entries that is selected.

    Returns:
        Number of entries.
    """
    if kind in ("columns", "rows"):
        return count_lines(shape, kind, density) * shape[0 if kind == "columns" else 1]
    return round(density * math.prod(shape))


def select_entries(shard: ShardInfo, kind: str, density: float, refresh: int, device: Any) -> Tensor:
    """Return the places of the selected entries of a shard.

    Args:
        shard: the shard; ``columns`` and ``rows`` need one of a matrix.
        kind: one of ``SELECTIONS``. ``randk`` selects each entry independently, so the number of entries varies.
        density: share of the entries that is selected.
        refresh: number of the draw.
        device: device of the result.

    Returns:
        Places counted from the start of the shard, ascending, as int64 of shape (number of selected entries,).
    """
    import torch

    match kind:
        case "columns" | "rows":
            length = shard.shape[1 if kind == "columns" else 0]
            count = count_lines(shard.shape, kind, density)
            lines = torch.randperm(length, generator=shard.generator(refresh))[:count].sort().values.to(device)
            return _list_columns(shard, lines) if kind == "columns" else _list_rows(shard, lines)
        case "blocks":
            everything = torch.arange(shard.numel, device=device)
            return everything if shard.index in select_blocks(shard, density, refresh) else everything[:0]
        case _:
            place = torch.arange(shard.start, shard.start + shard.numel, device=device)
            chance = _hash_to_unit(place, hash_seed(shard.seed, shard.name, refresh))
            return (chance < density).nonzero().view(-1)


def select_blocks(shard: ShardInfo, density: float, refresh: int) -> set[int]:
    """Return which parameters of a group are selected as whole blocks.

    They are the next ones of an order that is drawn anew for each pass over the group. An epoch begins one interval
    after the last one began, so that rounds of any length come to all parameters.

    Args:
        shard: any shard of the group; its ``count`` and ``seed`` are used.
        density: share of the parameters that is selected; at least one is.
        refresh: number of the draw.

    Returns:
        Indices of the selected parameters in the group.
    """
    import torch

    count = max(1, round(density * shard.count))
    epoch, interval = divmod(refresh, EPOCH_STRIDE)
    passes, position = divmod((epoch + interval) * count, shard.count)
    order: list[int] = []
    for number in (passes, passes + 1):
        generator = torch.Generator().manual_seed(hash_seed(shard.seed, "blocks", number))
        order += torch.randperm(shard.count, generator=generator).tolist()
    return set(order[position : position + count])


def _list_columns(shard: ShardInfo, columns: Tensor) -> Tensor:
    """List the places of all entries of some columns that are in the shard."""
    import torch

    width = shard.shape[1]
    first_row = shard.start // width
    end_row = -(-(shard.start + shard.numel) // width)
    rows = torch.arange(first_row * width, end_row * width, width, device=columns.device)
    return _keep_inside((rows[:, None] + columns).view(-1), shard)


def _list_rows(shard: ShardInfo, rows: Tensor) -> Tensor:
    """List the places of all entries of some rows that are in the shard."""
    import torch

    width = shard.shape[1]
    return _keep_inside((rows[:, None] * width + torch.arange(width, device=rows.device)).view(-1), shard)


def _keep_inside(places: Tensor, shard: ShardInfo) -> Tensor:
    """Turn places in the parameter into places in the shard, and drop those outside of it."""
    if shard.whole:
        return places
    return places[(places >= shard.start) & (places < shard.start + shard.numel)] - shard.start


def _hash_to_unit(place: Tensor, seed: int) -> Tensor:
    """Hash places to float64 numbers in [0, 1), by the finalizer of MurmurHash3 (64 bits) in wrapping integers."""
    mixed = (place + (seed & 0xFFFFFFFF)) * -0x61C8864680B583EB
    for shift, factor in ((33, -0xAE502812AA7333), (33, -0x3B314601E57A13AD), (33, 1)):
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
    return (mixed >> 11 & (1 << 53) - 1).double() * 2.0**-53
