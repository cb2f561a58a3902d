"""Exact algebra of factored sums ``sum_i w_i B_i A_i`` is here: spectra, truncation, norms, inner products.

The matrix itself is not formed: two thin QR factorisations reduce it to a core of the stacked rank (recompression of
low-rank sums, Bebendorf 2008, "Hierarchical Matrices", section 1.1). Only where the ranks of the terms add up to the
shorter side is the matrix smaller than its factors; from there on terms are added into it, so that memory and time
are bounded by the matrix for any number of terms. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.merging.base import Floats, Module
from fedcompress.types import Array


@dataclass(frozen=True)
class Term:
    """A term is one summand ``weight * b @ a`` of a factored sum."""

    weight: float
    b: Array | Floats  # (rows, rank), float32 or float64
    a: Array | Floats  # (rank, columns), float32 or float64


@dataclass(frozen=True)
class Truncation:
    """A truncation holds factors of a given rank, and says what was lost by it."""

    b: Floats  # (rows, rank)
    a: Floats  # (rank, columns)
    values: Floats  # (k,): all singular values of the matrix that the factors stand for, descending
    error: float  # norm of what was cut off over the norm of the matrix, Frobenius; 0 for a zero matrix


@dataclass(frozen=True)
class Spectrum:
    """A spectrum is a thin singular value decomposition ``u diag(values) v``."""

    u: Floats  # (rows, k)
    values: Floats  # (k,), descending
    v: Floats  # (k, columns)

    @property
    def rank(self) -> int:
        """Return the number of singular values above rounding.

        Rounding is the longer side of the matrix times the float64 epsilon times the largest value.
        """
        if not self.values.size:
            return 0
        longest = max(self.u.shape[0], self.v.shape[1])
        floor = longest * float(np.finfo(np.float64).eps) * self.values[0]
        return int(np.count_nonzero(self.values > floor))

    def rank_for(self, energy: float) -> int:
        """Return the smallest rank whose part of the squared norm is at least ``energy``, but at most ``rank``.

        ``energy`` is a share of the squared Frobenius norm; 1 or more gives ``rank``.
        """
        energies = np.cumsum(np.square(self.values))
        if not energies.size or energy >= 1:
            return self.rank
        return min(int(np.searchsorted(energies, energy * energies[-1])) + 1, self.rank)

    def truncate(self, rank: int) -> Truncation:
        """Return the best factors of a rank (Eckart and Young 1936).

        They are balanced: both hold the square root of the singular values. Rows of ``a`` and columns of ``b`` beyond
        the length of the spectrum are zero.
        """
        count = min(rank, self.values.size)
        b = np.zeros((self.u.shape[0], rank))
        a = np.zeros((rank, self.v.shape[1]))
        root = np.sqrt(self.values[:count])
        b[:, :count] = self.u[:, :count] * root
        a[:count] = root[:, None] * self.v[:count]
        whole = float(np.linalg.norm(self.values))
        lost = float(np.linalg.norm(self.values[count:]))
        return Truncation(b, a, self.values, lost / whole if whole else 0.0)


def list_terms(module: Module) -> list[Term]:
    """List the terms of a module's mean product ``sum_i w_i B_i A_i``."""
    return [Term(float(weight), b, a) for weight, (a, b) in zip(module.weights, module.factors, strict=True)]


def _stack_terms(terms: Iterable[Term], shape: tuple[int, int]) -> tuple[Floats | None, Floats]:
    """Return stacked factors whose product is the sum; or None and the matrix itself, where that is smaller."""
    side = min(shape)
    dense: Floats | None = None
    lefts: list[Floats] = [np.zeros((shape[0], 0))]
    rights: list[Floats] = [np.zeros((0, shape[1]))]
    rank = 0
    for term in terms:
        lefts.append(term.weight * np.asarray(term.b, np.float64))
        rights.append(np.asarray(term.a, np.float64))
        rank += term.b.shape[1]
        if rank >= side:
            product = np.hstack(lefts) @ np.vstack(rights)
            dense = product if dense is None else dense + product
            lefts = lefts[:1]
            rights = rights[:1]
            rank = 0
    if dense is None:
        return np.hstack(lefts), np.vstack(rights)
    if rank:
        return None, dense + np.hstack(lefts) @ np.vstack(rights)
    return None, dense


def spectrum(terms: Iterable[Term], shape: tuple[int, int]) -> Spectrum:
    """Compute the singular value decomposition of a factored sum.

    Args:
        terms: the summands; they are read once, one at a time.
        shape: shape of the matrix, (rows, columns), which also a sum without terms has.

    Returns:
        At most ``min(shape)`` singular values, and at most as many as the ranks of the terms add up to. Each column
        of ``u`` has a positive largest entry, so that signs do not depend on rounding.
    """
    left, right = _stack_terms(terms, shape)
    if left is None:
        return dense_spectrum(right)
    if not left.shape[1]:
        return Spectrum(np.zeros((shape[0], 0)), np.zeros(0), np.zeros((0, shape[1])))
    left_q, left_r = np.linalg.qr(left)
    right_q, right_r = np.linalg.qr(right.T)
    u, values, v = np.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return _fix_signs(left_q @ u, values, v @ right_q.T)


def dense_spectrum(matrix: Array | Floats) -> Spectrum:
    """Compute the singular value decomposition of a matrix; signs are fixed as in ``spectrum``."""
    u, values, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return _fix_signs(u, values, v)


def _fix_signs(u: Floats, values: Floats, v: Floats) -> Spectrum:
    if not values.size:
        return Spectrum(u, values, v)
    largest = u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])]
    signs = np.where(largest < 0, -1.0, 1.0)
    return Spectrum(u * signs, values, v * signs[:, None])


def truncate(terms: Iterable[Term], shape: tuple[int, int], rank: int) -> Truncation:
    """Find the best factors of a rank for a factored sum.

    Args:
        terms: the summands; they are read once, one at a time.
        shape: shape of the matrix, (rows, columns).
        rank: rank of the factors.

    Returns:
        Balanced factors, zero beyond the rank of the matrix, and the error.
    """
    return spectrum(terms, shape).truncate(rank)


def norm(terms: Iterable[Term], shape: tuple[int, int]) -> float:
    """Compute the Frobenius norm of a factored sum, without the cancellation of a sum of inner products."""
    left, right = _stack_terms(terms, shape)
    if left is not None:
        if not left.shape[1]:
            return 0.0
        left_r = np.asarray(np.linalg.qr(left, "r"))
        right_r = np.asarray(np.linalg.qr(right.T, "r"))
        right = left_r @ right_r.T
    return float(np.linalg.norm(right))


def distance(terms: Sequence[Term], b: Floats, a: Floats) -> float:
    """Compute ``|b a - M| / |M|`` in the Frobenius norm for a factored sum M.

    Args:
        terms: the summands of M.
        b: shape (rows, rank).
        a: shape (rank, columns).

    Returns:
        The relative distance; 0 if both are zero, infinity if only M is.
    """
    shape = b.shape[0], a.shape[1]
    whole = norm(terms, shape)
    missed = norm([*terms, Term(-1.0, b, a)], shape)
    if whole:
        return missed / whole
    return float("inf") if missed else 0.0


def inner(left: Sequence[Term], right: Sequence[Term]) -> float:
    """Compute the Frobenius inner product of two factored sums: ``sum_ij w_i v_j <B_i^T C_j, A_i D_j^T>``."""
    total = 0.0
    for x in left:
        for y in right:
            rows = np.asarray(x.b, np.float64).T @ y.b
            columns = np.asarray(x.a, np.float64) @ y.a.T
            total += x.weight * y.weight * float(np.vdot(rows, columns))
    return total


def grams(terms: Sequence[Term]) -> Floats:
    """Compute the inner products of all pairs of terms, shape (n, n); all terms are in memory, in float64."""
    ends = np.cumsum([t.b.shape[1] for t in terms])
    out = np.zeros((len(terms), len(terms)))
    if not len(terms) or not ends[-1]:
        return out
    lefts = np.hstack([t.weight * np.asarray(t.b, np.float64) for t in terms])
    rights = np.vstack([np.asarray(t.a, np.float64) for t in terms])
    for i, term in enumerate(terms):
        end = ends[i]
        start = end - term.b.shape[1]
        shared = ((lefts[:, start:end].T @ lefts[:, :end]) * (rights[start:end] @ rights[:end].T)).sum(axis=0)
        for j in range(i + 1):
            product = shared[ends[j] - terms[j].b.shape[1] : ends[j]].sum()
            out[i, j] = product
            out[j, i] = product
    return out
