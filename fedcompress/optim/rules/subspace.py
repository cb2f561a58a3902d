"""The head that rules share which keep Adam's moments for ``rank`` directions of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedcompress.optim.base import MATRIX, check_matrix


@dataclass(frozen=True, kw_only=True)
class SubspaceRule:
    """A subspace rule projects the smaller side of a matrix to ``rank`` directions and runs Adam there.

    Args:
        rank: number of directions; a matrix whose smaller side is below it has as many as that.
    """

    name: ClassVar[str]
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
    rank: int

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Accept matrices."""
        check_matrix(self.name, name, shape)

    def count_directions(self, shape: tuple[int, ...]) -> int:
        """Return the number of directions that the rule keeps of a matrix: its rank, or the smaller side."""
        return min(self.rank, *shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments of the projected gradient, which keeps the larger side."""
        numel = self.count_directions(shape) * max(shape)
        return {"m": numel, "v": numel}
