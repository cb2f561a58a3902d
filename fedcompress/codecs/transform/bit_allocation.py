"""Chooses which components of each tensor are worth their bits, for a given step, by reverse water-filling.

Only the encoder runs this; the bytes carry its decisions.

A *component* is a singular component of a tensor's matrix (``MatrixView``: no more rows than columns). A *step* is the
quantizer's step, the same for the whole update; errors and energies are counted in squared steps. A *class* is the
standard deviation of a row on a logarithmic scale, in steps; it names the codebook that the row is coded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.codecs.transform.codebook import DISTORTIONS, LOG_STEP, LOWEST, RATES
from fedcompress.codecs.transform.trellis import LAMBDA, MAX_CLASS, Ints, count_low_bits, find_table
from fedcompress.types import Array

MAX_SIDE = 1024  # rows of a matrix up to which it is rotated; larger ones are coded row by row
ROW_BITS = 4.0  # bits that the class of a row takes, about
Floats = NDArray[np.float64]


def vector_bits(column_bits: Ints | int, side_bits: Ints | int, classes: Ints) -> Ints:
    """Return the fraction bits of the entries of singular vectors, from 1 to 12.

    Finer vectors cost more bits and distort the row that they carry less. The two balance at half a bit more for each
    doubling of the columns and a quarter of a bit for each class; there are never so few that a vector becomes zero.

    Args:
        column_bits: bit length of the matrix's number of columns.
        side_bits: bit length of its number of rows.
        classes: of the components that the vectors belong to.

    Returns:
        Bits of each vector, of the shape of ``classes``.
    """
    bits: Ints = np.clip((2 * column_bits + classes - 5) // 4, (side_bits + 1) // 2, 12)
    return bits


@dataclass(frozen=True)
class TensorSpectrum:
    """Holds the energies of one tensor's matrix, in float64.

    Args:
        columns: of the matrix.
        weight: what its squared error counts.
        rows: the squared norm of each matrix row, shape (side,).
        components: the squared singular values, largest first, shape (components,); none where the matrix is not
            to be rotated.
        vectors: the left singular vectors, shape (side, components).
    """

    columns: int
    weight: float
    rows: Floats
    components: Floats
    vectors: Floats


def compute_spectrum(value: Array, weight: float) -> TensorSpectrum:
    """Compute the energies of a tensor; without components if it has one row, more than ``MAX_SIDE``, or is zero."""
    matrix = MatrixView.of(value.shape).matrix(value).astype(np.float64)
    side, columns = matrix.shape
    rows = np.square(matrix).sum(1)
    if not 1 < side <= MAX_SIDE or not rows.any():
        return TensorSpectrum(columns, weight, rows, np.zeros(0), np.zeros((side, 0)))
    energies, vectors = np.linalg.eigh(matrix @ matrix.T)
    return TensorSpectrum(columns, weight, rows, np.maximum(energies[::-1], 0), vectors[:, ::-1])


def find_classes(deviations: Floats) -> Ints:
    """Return the nearest class of each standard deviation, given in steps; -1 is too weak for any class."""
    with np.errstate(divide="ignore"):
        exact = (np.log2(deviations) - LOWEST) * LOG_STEP
    return np.rint(np.clip(exact, -1, MAX_CLASS)).astype(np.int64)


@dataclass(frozen=True)
class BitPlan:
    """Says what is sent of one tensor: its first components, or some of its rows as they are, or nothing.

    Args:
        rotated: True for components, False for rows.
        indices: which components, or which rows, ascending, shape (sent,); components always begin with 0.
        classes: of each of them, from 0 to ``MAX_CLASS``, shape (sent,).
    """

    rotated: bool
    indices: Ints
    classes: Ints


@dataclass(frozen=True)
class RateEstimate:
    """Estimates what it takes to send, at one step, the vectors of a pool that are worth their bits.

    Args:
        classes: the class of each vector of the pool, int64, shape (vectors,); 0 also for those too weak for any.
        is_sent: whether each vector is worth its bits, bool, shape (vectors,).
        bits_spent: bits that each tensor takes, float64, shape (tensors,).
        gain: what sending saves of each tensor's weighted squared error, in squared steps, less ``LAMBDA`` for each
            bit, float64, shape (tensors,).
    """

    classes: Ints
    is_sent: NDArray[np.bool_]
    bits_spent: Floats
    gain: Floats


@dataclass(frozen=True)
class _Pool:
    """The matrix rows, or the components, of all tensors, one after another; here both are called vectors.

    Args:
        energies: the weighted energy of each vector, shape (vectors,), as the fields below.
        owner: the number of the tensor that it belongs to, ascending.
        columns: of that tensor's matrix.
        side: rows of that tensor's matrix.
        rotated: whether these are components.
    """

    energies: Floats
    owner: Ints
    columns: Ints
    side: Ints
    rotated: bool

    @classmethod
    def collect(cls, spectra: Sequence[TensorSpectrum], rank: int, rotated: bool) -> _Pool:
        """Collect the rows, or at most ``rank`` components, of each tensor."""
        parts = [s.components[:rank] if rotated else s.rows for s in spectra]
        owner = np.repeat(np.arange(len(parts)), [p.size for p in parts])
        weight = np.array([s.weight for s in spectra])
        columns = np.array([max(s.columns, 1) for s in spectra])
        side = np.array([max(s.rows.size, 1) for s in spectra])
        return cls(np.concatenate(parts) * weight[owner], owner, columns[owner], side[owner], rotated)

    def estimate(self, step: float, tensors: int) -> RateEstimate:
        """Estimate bits and gain of each of ``tensors`` tensors at a step."""
        scaled = self.energies / step**2
        exact = find_classes(np.sqrt(scaled / self.columns))
        classes = np.maximum(exact, 0)
        bits = self.columns * (RATES[find_table(classes)] + count_low_bits(classes))
        if self.rotated:
            # The singular vector is sent too: its entries are about normal, with deviation 1 / sqrt(side), and a
            # normal variable takes 2.05 bits more than log2 of its deviation in units of its precision.
            entry = vector_bits(_bit_length(self.columns), _bit_length(self.side), classes)
            bits += ROW_BITS + self.side * (entry + 2.05 - 0.5 * np.log2(self.side))
        gain = scaled - self.columns * DISTORTIONS[find_table(classes)] - LAMBDA * bits
        is_sent = (gain > 0) & (exact >= 0)
        bits_spent: Floats = np.bincount(self.owner[is_sent], bits[is_sent], tensors).astype(np.float64)
        total_gain: Floats = np.bincount(self.owner[is_sent], gain[is_sent], tensors).astype(np.float64)
        if not self.rotated:  # every row says whether it is sent
            row_bits = np.bincount(self.owner, minlength=tensors) * ROW_BITS
            bits_spent = bits_spent + row_bits
            total_gain = total_gain - LAMBDA * row_bits
        return RateEstimate(classes, is_sent, bits_spent, total_gain)


def _bit_length(values: Ints) -> Ints:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


class BitAllocator:
    """Plans what is sent of all tensors of an update, for any step.

    Args:
        spectra: one a tensor.
        rank: the largest number of components that may be sent of a tensor.
    """

    def __init__(self, spectra: Sequence[TensorSpectrum], rank: int) -> None:
        self._count = len(spectra)
        self._unrotated = _Pool.collect(spectra, rank, rotated=False)
        self._rotated = _Pool.collect(spectra, rank, rotated=True)

    def plan(self, step: float) -> list[BitPlan]:
        """Return for each tensor the better of rotated and unrotated, or an empty plan if neither is worth its bits."""
        rotated = self._rotated.estimate(step, self._count)
        unrotated = self._unrotated.estimate(step, self._count)
        rotated_plans = self._split_by_tensor(self._rotated, rotated)
        unrotated_plans = self._split_by_tensor(self._unrotated, unrotated)
        empty = BitPlan(False, np.zeros(0, np.int64), np.zeros(0, np.int64))
        plans = []
        for number in range(self._count):
            if max(rotated.gain[number], unrotated.gain[number]) <= 0:
                plans.append(empty)
            elif rotated.gain[number] > unrotated.gain[number]:
                plans.append(rotated_plans[number])
            else:
                plans.append(unrotated_plans[number])
        return plans

    def _split_by_tensor(self, pool: _Pool, estimate: RateEstimate) -> list[BitPlan]:
        """Return a plan for each tensor that sends what an estimate says is worth its bits.

        Components are sorted, so that those that are sent come first; the first one that is not ends the plan.
        """
        ends = np.cumsum(np.bincount(pool.owner, minlength=self._count))[:-1]
        plans = []
        for is_sent, classes in zip(np.split(estimate.is_sent, ends), np.split(estimate.classes, ends), strict=True):
            indices = np.flatnonzero(is_sent)
            if pool.rotated:
                indices = np.arange(int(np.argmin(np.r_[is_sent, False])))
            plans.append(BitPlan(pool.rotated, indices, classes[indices]))
        return plans

    def estimate_bits(self, step: float) -> float:
        """Estimate the bits that the plans for a step need together, with one bit a tensor for its mode."""
        rotated = self._rotated.estimate(step, self._count)
        unrotated = self._unrotated.estimate(step, self._count)
        bits_spent = np.where(rotated.gain > unrotated.gain, rotated.bits_spent, unrotated.bits_spent)
        is_worth_it = np.maximum(rotated.gain, unrotated.gain) > 0
        return float(bits_spent[is_worth_it].sum()) + self._count

    def find_step(self, bits: float) -> float:
        """Find the smallest step, to a relative 2^-20, whose plans need no more than about so many bits."""
        top = float(np.log2(max(self._unrotated.energies.max(initial=0), 1e-300))) / 2
        low, high = top - 24, top + 1
        for _ in range(24):
            middle = (low + high) / 2
            if self.estimate_bits(2**middle) <= bits:
                high = middle
            else:
                low = middle
        return float(2**high)
