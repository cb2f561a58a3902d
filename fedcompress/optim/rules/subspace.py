"""The head that rules share which keep Adam's moments for ``rank`` directions of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedcompress.optim.base import MATRIX
from fedcompress.optim.state.projection import check_rank


@dataclass(frozen=True, kw_only=True)
class SubspaceRule:
    """A subspace rule projects the smaller side of a matrix to ``rank`` directions and runs Adam there.

    Args:
        rank: number of directions; at most the smaller side.
    """

    name: ClassVar[str]
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
    rank: int

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Accept matrices whose smaller side is at least the rank."""
        check_rank(self.name, self.rank, name, shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments of the projected gradient, which keeps the larger side."""
        numel = self.rank * max(shape)
        return {"m": numel, "v": numel}
