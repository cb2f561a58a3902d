"""Selects under a byte budget: the density of each tensor, or row, is the one that leaves the least error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPositions
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.codecs.selectors.topk import find_largest
from fedcompress.errors import ConfigError
from fedcompress.types import Array

POINTS = 40  # densities that are tried for each tensor or row
SCALE_BITS = 24.0  # bits of a bfloat16 scale and a count
UNITS = ("tensor", "row")


@dataclass(frozen=True, kw_only=True)
class Allocate(CodedPositions):
    """Keeps the largest entries, with a density of its own for each tensor or row, for about ``budget`` bits an entry.

    Of n entries, the k largest, sent as plus or minus their mean, save ``(sum |x|)^2 / k`` of squared error; they
    cost ``n H(k/n) + k`` bits and a scale. Each tensor takes the k with the largest ``saved - lambda * bits`` on its
    own curve; one lambda for all, found by bisection, makes the bits fit the budget (Shoham and Gersho 1988). It is
    made for ``|ternary``, and with ``by="row"`` for ``|ternary(by=row)``: bits are counted for that.

    Args:
        budget: bits a parameter, from 0.001 to 2.
        by: what has a density of its own: ``tensor``, or ``row`` for each row of the matrix along its short side.

    >>> from fedcompress.codecs import preview
    >>> print(preview("allocate(budget=2)|ternary", [9, 0.1, -0.1, 0.1] * 16))
    18 bytes, relative squared error 0.058: [8.5, 8.5, 0, 0, 8.5, 0, 0, 0, 8.5, ...]
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
        """Choose positions under the budget; ``shapes`` is needed for ``by="row"`` alone."""
        units: list[Indices] = []  # the positions of each unit in its tensor
        owner: list[int] = []  # the number of each unit's tensor
        for number, value in enumerate(values):
            parts = [np.arange(value.size)]
            if self.by == "row":
                row = MatrixView.of(shapes[number]).locate()[0]
                order = np.argsort(row, kind="stable")
                parts = np.split(order, np.flatnonzero(np.diff(row[order])) + 1)
            units += parts
            owner += [number] * len(parts)
        pieces = [values[o][u] for o, u in zip(owner, units, strict=True)]
        curves = [compute_curve(np.abs(piece)) for piece in pieces]
        counts = allocate_counts(curves, self.budget * sum(v.size for v in values))
        chosen: list[list[Indices]] = [[] for _ in values]
        for number, unit, piece, count in zip(owner, units, pieces, counts, strict=True):
            chosen[number].append(unit[find_largest([piece], count)[0]])
        return [np.sort(np.concatenate(c)) for c in chosen]


@dataclass(frozen=True)
class Curve:
    """A curve says what the k largest entries of a tensor cost and save, for some k.

    Args:
        counts: the values of k, ascending from 0, shape (points,).
        bits: what these entries cost, float64, shape (points,).
        saved: the squared error that they save, float64, shape (points,).
    """

    counts: NDArray[np.int64]
    bits: NDArray[np.float64]
    saved: NDArray[np.float64]


def compute_curve(magnitudes: Array) -> Curve:
    """Compute the curve of one tensor at no more than ``POINTS`` geometrically spaced counts, and at 0."""
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


def allocate_counts(curves: Sequence[Curve], budget: float) -> list[int]:
    """Choose how many entries of each tensor are sent, for at most ``budget`` bits together."""
    low = -100.0  # log2 of a lambda that is too small, and so spends too many bits
    high = 100.0
    best = [0] * len(curves)
    for _ in range(60):
        middle = (low + high) / 2
        picks = [int(np.argmax(c.saved - 2.0**middle * c.bits)) for c in curves]
        if sum(float(c.bits[p]) for c, p in zip(curves, picks, strict=True)) <= budget:
            high = middle
            best = [int(c.counts[p]) for c, p in zip(curves, picks, strict=True)]
        else:
            low = middle
    return best
