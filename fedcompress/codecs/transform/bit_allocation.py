"""Which components of each tensor are worth their bits, for one step: reverse water-filling.

Everything here is the encoder's; the bytes carry its decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.matrix_view import Grid
from fedcompress.codecs.transform.codebook import DISTORTIONS, LOG_STEP, LOWEST, RATES
from fedcompress.codecs.transform.trellis import LAMBDA, MAX_CLASS, Ints, shift_of, table_of
from fedcompress.types import Array

MAX_SIDE = 1024  # larger small sides are coded row by row, without a rotation
ROW_BITS = 4.0  # what the class of a row costs, about
Floats = NDArray[np.float64]


def vector_bits(columns: Ints | int, side: Ints | int, classes: Ints) -> Ints:
    """Fraction bits of singular vectors: as many as pay for a row of this class; never so few that one vanishes.

    Args:
        columns: bit length of the number of columns.
        side: bit length of the number of rows.
        classes: of the rows that the vectors belong to.
    """
    bits: Ints = np.clip((2 * columns + classes - 5) // 4, (side + 1) // 2, 12)
    return bits


@dataclass(frozen=True)
class Spectrum:
    """Energies of one tensor: by row, and by singular component, largest first."""

    columns: int
    weight: float
    rows: Floats
    components: Floats
    vectors: Floats  # (rows, components)


def spectrum_of(value: Array, weight: float) -> Spectrum:
    """Energies in float64; no components where there is only one row, or too many."""
    matrix = Grid.of(value.shape).matrix(value).astype(np.float64)
    side, columns = matrix.shape
    rows = np.square(matrix).sum(1)
    if not 1 < side <= MAX_SIDE or not rows.any():
        return Spectrum(columns, weight, rows, np.zeros(0), np.zeros((side, 0)))
    energies, vectors = np.linalg.eigh(matrix @ matrix.T)
    return Spectrum(columns, weight, rows, np.maximum(energies[::-1], 0), vectors[:, ::-1])


def classes_for(deviations: Floats) -> Ints:
    """Nearest class of standard deviations in steps; below 0 is too weak for any."""
    with np.errstate(divide="ignore"):
        exact = (np.log2(deviations) - LOWEST) * LOG_STEP
    return np.rint(np.clip(exact, -1, MAX_CLASS)).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """What is sent of one tensor: the first components, or some rows as they are, or nothing."""

    rotated: bool
    kept: Ints
    classes: Ints


@dataclass(frozen=True)
class _Pool:
    """Rows, or components, of all tensors, one after another."""

    energies: Floats  # weighted
    owner: Ints
    columns: Ints
    side: Ints
    rotated: bool

    @classmethod
    def of(cls, spectra: Sequence[Spectrum], rank: int, rotated: bool) -> _Pool:
        parts = [s.components[:rank] if rotated else s.rows for s in spectra]
        owner = np.repeat(np.arange(len(parts)), [p.size for p in parts])
        weight = np.array([s.weight for s in spectra])
        columns = np.array([max(s.columns, 1) for s in spectra])
        side = np.array([max(s.rows.size, 1) for s in spectra])
        return cls(np.concatenate(parts) * weight[owner], owner, columns[owner], side[owner], rotated)

    def rate(self, step: float, tensors: int) -> tuple[Ints, NDArray[np.bool_], Floats, Floats]:
        """Class of each row, whether it is worth its bits; bits and gain (in squared steps) of each tensor."""
        scaled = self.energies / step**2
        exact = classes_for(np.sqrt(scaled / self.columns))
        classes = np.maximum(exact, 0)
        bits = self.columns * (RATES[table_of(classes)] + shift_of(classes))
        if self.rotated:
            entry = vector_bits(_bit_length(self.columns), _bit_length(self.side), classes)
            bits += ROW_BITS + self.side * (entry + 2.05 - 0.5 * np.log2(self.side))
        gain = scaled - self.columns * DISTORTIONS[table_of(classes)] - LAMBDA * bits
        kept = (gain > 0) & (exact >= 0)
        spent: Floats = np.bincount(self.owner[kept], bits[kept], tensors).astype(np.float64)
        saved: Floats = np.bincount(self.owner[kept], gain[kept], tensors).astype(np.float64)
        if not self.rotated:
            rows = np.bincount(self.owner, minlength=tensors) * ROW_BITS
            spent, saved = spent + rows, saved - LAMBDA * rows
        return classes, kept, spent, saved


def _bit_length(values: Ints) -> Ints:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


class Budget:
    """Plans for all tensors of an update, for any step."""

    def __init__(self, spectra: Sequence[Spectrum], rank: int) -> None:
        self._count = len(spectra)
        self._plain = _Pool.of(spectra, rank, rotated=False)
        self._turned = _Pool.of(spectra, rank, rotated=True)

    def plans(self, step: float) -> list[Plan]:
        """The better of rotated and plain for each tensor."""
        _, _, _, plain_saved = self._plain.rate(step, self._count)
        _, _, _, turned_saved = self._turned.rate(step, self._count)
        better = turned_saved > plain_saved
        worth = np.maximum(turned_saved, plain_saved) > 0
        split = [self._split(pool, step) for pool in (self._plain, self._turned)]
        none = Plan(False, np.zeros(0, np.int64), np.zeros(0, np.int64))
        return [
            Plan(bool(t), *split[int(t)][i]) if w else none for i, (t, w) in enumerate(zip(better, worth, strict=True))
        ]

    def _split(self, pool: _Pool, step: float) -> list[tuple[Ints, Ints]]:
        """Kept places and their classes, by tensor. Components are sorted, so that the kept ones come first."""
        classes, kept, _, _ = pool.rate(step, self._count)
        ends = np.cumsum(np.bincount(pool.owner, minlength=self._count))[:-1]
        out = []
        for keep, own in zip(np.split(kept, ends), np.split(classes, ends), strict=True):
            places = np.arange(int(np.argmin(np.r_[keep, False]))) if pool.rotated else np.flatnonzero(keep)
            out.append((places, own[places]))
        return out

    def bits(self, step: float) -> float:
        """About what the plans for a step need."""
        _, _, plain, plain_saved = self._plain.rate(step, self._count)
        _, _, turned, turned_saved = self._turned.rate(step, self._count)
        spent = np.where(turned_saved > plain_saved, turned, plain)
        return float(spent[np.maximum(turned_saved, plain_saved) > 0].sum()) + self._count

    def step_for(self, bits: float) -> float:
        """The step whose plans need about so many bits."""
        top = float(np.log2(max(self._plain.energies.max(initial=0), 1e-300))) / 2
        low, high = top - 24, top + 1
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (low, middle) if self.bits(2**middle) <= bits else (middle, high)
        return float(2**high)
