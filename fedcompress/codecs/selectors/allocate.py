"""Selection under a byte budget: densities by tensor, or by row, that leave the least error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPlaces
from fedcompress.codecs.matrix_view import Grid
from fedcompress.codecs.selectors.topk import largest
from fedcompress.errors import ConfigError
from fedcompress.types import Array

POINTS = 40  # densities that are tried for each tensor
SCALE_BITS = 24.0  # a bf16 scale and a count
UNITS = ("tensor", "row")


@dataclass(frozen=True, kw_only=True)
class Allocate(CodedPlaces):
    """Top-k with a density of its own for each tensor, for about ``budget`` bits a parameter.

    Of n entries, the k largest as plus or minus their mean save ``(sum |x|)^2 / k`` of squared
    error, and cost ``n H(k/n) + k`` bits and a scale. Each tensor takes the k with the largest
    ``saved - lambda * bits`` on its own curve; one lambda for all, found by bisection, makes the
    bits fit the budget (Shoham and Gersho 1988). Made for ``|ternary``, and ``by="row"`` for
    ``|ternary(by=row)``, where each row of a matrix has its own density; bits are counted for that.
    """

    name: ClassVar[str] = "allocate"
    budget: float
    by: str = "tensor"

    def __post_init__(self) -> None:
        if not 0.001 <= self.budget <= 2:
            raise ConfigError("codec.allocate.budget", self.budget, "must be from 0.001 to 2 bits a parameter")
        if self.by not in UNITS:
            raise ConfigError("codec.allocate.by", self.by, f"one of {list(UNITS)}")

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Positions in flat float32 vectors; rows are known from ``shapes``."""
        units: list[Indices] = []  # the positions of each unit in its tensor
        owner: list[int] = []
        for number, value in enumerate(values):
            parts = [np.arange(value.size)]
            if self.by == "row":
                row = Grid.of(shapes[number]).locate()[0]
                order = np.argsort(row, kind="stable")
                parts = np.split(order, np.flatnonzero(np.diff(row[order])) + 1)
            units += parts
            owner += [number] * len(parts)
        pieces = [values[o][u] for o, u in zip(owner, units, strict=True)]
        counts = allot([curve(np.abs(p)) for p in pieces], self.budget * sum(v.size for v in values))
        chosen: list[list[Indices]] = [[] for _ in values]
        for number, unit, piece, count in zip(owner, units, pieces, counts, strict=True):
            chosen[number].append(unit[largest([piece], count)[0]])
        return [np.sort(np.concatenate(c)) for c in chosen]


@dataclass(frozen=True)
class Curve:
    """What k entries of a tensor cost and save."""

    counts: NDArray[np.int64]
    bits: NDArray[np.float64]
    saved: NDArray[np.float64]


def curve(magnitudes: Array) -> Curve:
    """The curve of one tensor at ``POINTS`` counts, nothing among them."""
    size = magnitudes.size
    counts = np.unique(np.r_[0, np.geomspace(1, max(size, 1), POINTS).astype(np.int64)])
    counts = counts[counts <= size]
    sums = np.r_[0.0, np.cumsum(np.sort(magnitudes)[::-1], dtype=np.float64)][counts]
    share = counts / max(size, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
        saved = np.where(counts > 0, sums**2 / counts, 0.0)
    bits = np.where(counts > 0, size * np.nan_to_num(entropy) + counts + SCALE_BITS, 0.0)
    return Curve(counts, bits, saved)


def allot(curves: Sequence[Curve], budget: float) -> list[int]:
    """The count of each tensor, for at most ``budget`` bits together."""
    low, high, best = -100.0, 100.0, [0] * len(curves)
    for _ in range(60):
        middle = (low + high) / 2
        picks = [int(np.argmax(c.saved - 2.0**middle * c.bits)) for c in curves]
        if sum(float(c.bits[p]) for c, p in zip(curves, picks, strict=True)) <= budget:
            high, best = middle, [int(c.counts[p]) for c, p in zip(curves, picks, strict=True)]
        else:
            low = middle
    return best
