"""Rows of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pad_rows(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Any, Any]:
    """Values and mask of (n, longest), int64; ``left`` puts the filling first."""
    import torch

    length = max(1, *(len(row) for row in rows)) if rows else 1
    values = torch.full((len(rows), length), fill, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for place, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        values[place, where] = torch.as_tensor(row, dtype=torch.int64)
        mask[place, where] = 1
    return values, mask
