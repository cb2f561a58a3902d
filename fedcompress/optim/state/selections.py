"""Which entries of a parameter hold state for a while: columns, rows, whole matrices, or single entries.

Entries are found again from the seed, so nothing is stored for them.
"""

from __future__ import annotations

from typing import Any

from fedcompress.optim.base import EPOCH, ShardInfo, derive_seed

SELECTIONS: tuple[str, ...] = ("columns", "rows", "blocks", "randk")


def lines(shape: tuple[int, ...], kind: str, density: float) -> int:
    """How many columns or rows are selected."""
    return max(1, round(density * shape[1 if kind == "columns" else 0]))


def selected_numel(shape: tuple[int, ...], kind: str, density: float) -> int:
    """Entries that are selected; for ``blocks`` and ``randk`` the expected number."""
    import math

    if kind in ("columns", "rows"):
        return lines(shape, kind, density) * shape[0 if kind == "columns" else 1]
    return round(density * math.prod(shape))


def selected(part: ShardInfo, kind: str, density: float, refresh: int, device: Any) -> Any:
    """Places of the selected entries, counted from the start of a part, ascending; int64.

    Args:
        part: where; ``columns`` and ``rows`` need a matrix.
        kind: of ``SELECTIONS``. ``randk`` selects each entry by itself, so the number varies.
        density: share that is selected.
        refresh: number of the draw.
        device: of the result.
    """
    import torch

    match kind:
        case "columns" | "rows":
            side = part.shape[1 if kind == "columns" else 0]
            count = lines(part.shape, kind, density)
            drawn = torch.randperm(side, generator=part.generator(refresh))[:count].sort().values.to(device)
            return _columns(part, drawn) if kind == "columns" else _rows(part, drawn)
        case "blocks":
            everything = torch.arange(part.numel, device=device)
            return everything if part.index in block_set(part, density, refresh) else everything[:0]
        case _:
            place = torch.arange(part.start, part.start + part.numel, device=device)
            return (_uniform(place, derive_seed(part.seed, part.name, refresh)) < density).nonzero().view(-1)


def block_set(part: ShardInfo, density: float, refresh: int) -> set[int]:
    """Numbers of the matrices that are selected: the next ones of an order that is drawn for each pass.

    A round begins one interval after the last began, so that rounds of any length come to all matrices.
    """
    import torch

    count, (epoch, interval) = max(1, round(density * part.count)), divmod(refresh, EPOCH)
    passes, at = divmod((epoch + interval) * count, part.count)
    order: list[int] = []
    for number in (passes, passes + 1):
        generator = torch.Generator().manual_seed(derive_seed(part.seed, "blocks", number))
        order += torch.randperm(part.count, generator=generator).tolist()
    return set(order[at : at + count])


def _columns(part: ShardInfo, columns: Any) -> Any:
    import torch

    width = part.shape[1]
    first, last = part.start // width, -(-(part.start + part.numel) // width)
    rows = torch.arange(first * width, last * width, width, device=columns.device)
    return _inside((rows[:, None] + columns).view(-1), part)


def _rows(part: ShardInfo, rows: Any) -> Any:
    import torch

    width = part.shape[1]
    return _inside((rows[:, None] * width + torch.arange(width, device=rows.device)).view(-1), part)


def _inside(places: Any, part: ShardInfo) -> Any:
    if part.whole:
        return places
    return places[(places >= part.start) & (places < part.start + part.numel)] - part.start


def _uniform(place: Any, seed: int) -> Any:
    """Numbers in [0, 1) by place: the mixing of MurmurHash3's 64-bit end, in wrapping integers."""
    mixed = (place + (seed & 0xFFFFFFFF)) * -0x61C8864680B583EB
    for shift, factor in ((33, -0xAE502812AA7333), (33, -0x3B314601E57A13AD), (33, 1)):
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
    return (mixed >> 11 & (1 << 53) - 1).double() * 2.0**-53
