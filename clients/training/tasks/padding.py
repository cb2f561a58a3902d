"""Rows of different lengths are padded to one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad rows to the length of the longest, which is taken to be 1 at least.

    Args:
        rows: token ids or labels, n rows.
        fill: value of the padding.
        left: whether the padding comes first.

    Returns:
        Values of (n, length), and a mask of (n, length) that is 1 for values and 0 for padding; both int64.
    """
    import torch

    length = max(1, *(len(row) for row in rows)) if rows else 1
    values = torch.full((len(rows), length), fill, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for number, row in enumerate(rows):
        span = slice(length - len(row), length) if left else slice(0, len(row))
        values[number, span] = torch.as_tensor(row, dtype=torch.int64)
        mask[number, span] = 1
    return values, mask
