"""Exact algebra of factored sums ``sum_i w_i B_i A_i``: spectra, truncation, norms, inner products.

The matrix itself is not formed: two thin QR factorisations reduce it to a core of the stacked rank
(recompression of low-rank sums, Bebendorf 2008, "Hierarchical Matrices", section 1.1). Only where the ranks
of the terms add up to the shorter side is the matrix smaller than its factors; from there on terms
are added into it, so that memory and time are bounded by the matrix for any number of terms.
Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Floats, Module


@dataclass(frozen=True)
class Term:
    """``weight * b @ a``."""

    weight: float
    b: NDArray[Any]  # (rows, rank), float32 or float64
    a: NDArray[Any]  # (rank, columns)


@dataclass(frozen=True)
class Spectrum:
    """Thin singular value decomposition ``u diag(values) v``."""

    u: Floats  # (rows, k)
    values: Floats  # (k,), descending
    v: Floats  # (k, columns)

    @property
    def rank(self) -> int:
        """Singular values above rounding."""
        if not self.values.size:
            return 0
        longest = max(self.u.shape[0], self.v.shape[1])
        floor = longest * float(np.finfo(np.float64).eps) * self.values[0]
        return int(np.count_nonzero(self.values > floor))

    def rank_for(self, energy: float) -> int:
        """Smallest rank whose part of the squared norm is at least ``energy``, at most ``rank``."""
        kept = np.cumsum(np.square(self.values))
        if not kept.size or energy >= 1:
            return self.rank
        return min(int(np.searchsorted(kept, energy * kept[-1])) + 1, self.rank)

    def truncated(self, rank: int) -> Truncation:
        """Best factors of a rank (Eckart and Young 1936), balanced: both hold the square root of the values.

        Beyond the length of the spectrum they are zero.
        """
        kept = min(rank, self.values.size)
        b, a = np.zeros((self.u.shape[0], rank)), np.zeros((rank, self.v.shape[1]))
        root = np.sqrt(self.values[:kept])
        b[:, :kept] = self.u[:, :kept] * root
        a[:kept] = root[:, None] * self.v[:kept]
        whole = float(np.linalg.norm(self.values))
        return Truncation(b, a, self.values, float(np.linalg.norm(self.values[kept:])) / whole if whole else 0.0)


@dataclass(frozen=True)
class Truncation:
    """Factors, all singular values of what they stand for, and what was lost, relative in the Frobenius norm."""

    b: Floats  # (rows, rank)
    a: Floats  # (rank, columns)
    values: Floats  # (k,)
    error: float


def terms_of(module: Module) -> list[Term]:
    """The factored ``sum_i w_i B_i A_i`` of a module."""
    return [Term(float(w), b, a) for w, (a, b) in zip(module.weights, module.factors, strict=True)]


def _gathered(terms: Iterable[Term], shape: tuple[int, int]) -> tuple[Floats | None, Floats]:
    """Stacked factors whose product is the sum; or None and the matrix, where that is smaller."""
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
            lefts, rights, rank = lefts[:1], rights[:1], 0
    if dense is None:
        return np.hstack(lefts), np.vstack(rights)
    return None, dense + np.hstack(lefts) @ np.vstack(rights) if rank else dense


def spectrum(terms: Iterable[Term], shape: tuple[int, int]) -> Spectrum:
    """Singular value decomposition of a factored sum.

    Args:
        terms: read once, one at a time.
        shape: of the matrix, so that there may be no term.

    Returns:
        At most ``min(shape)`` and at most the stacked rank of values. Each column of ``u`` has a
        positive largest entry, so that signs do not depend on rounding.
    """
    left, right = _gathered(terms, shape)
    if left is None:
        return dense_spectrum(right)
    if not left.shape[1]:
        return Spectrum(np.zeros((shape[0], 0)), np.zeros(0), np.zeros((0, shape[1])))
    left_q, left_r = np.linalg.qr(left)
    right_q, right_r = np.linalg.qr(right.T)
    u, values, v = np.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return _signed(left_q @ u, values, v @ right_q.T)


def dense_spectrum(matrix: NDArray[Any]) -> Spectrum:
    """Singular value decomposition of a matrix."""
    u, values, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return _signed(u, values, v)


def _signed(u: Floats, values: Floats, v: Floats) -> Spectrum:
    if not values.size:
        return Spectrum(u, values, v)
    largest = u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])]
    signs = np.where(largest < 0, -1.0, 1.0)
    return Spectrum(u * signs, values, v * signs[:, None])


def truncated(terms: Iterable[Term], shape: tuple[int, int], rank: int) -> Truncation:
    """Best factors of a rank for a factored sum."""
    return spectrum(terms, shape).truncated(rank)


def norm(terms: Iterable[Term], shape: tuple[int, int]) -> float:
    """Frobenius norm of a factored sum, without the cancellation of a sum of inner products."""
    left, right = _gathered(terms, shape)
    if left is not None and left.shape[1]:
        left_r, right_r = np.asarray(np.linalg.qr(left, "r")), np.asarray(np.linalg.qr(right.T, "r"))
        right = left_r @ right_r.T
    elif left is not None:
        return 0.0
    return float(np.linalg.norm(right))


def distance(terms: Sequence[Term], b: Floats, a: Floats) -> float:
    """``|b a - M| / |M|`` in the Frobenius norm for a factored sum M; 0 if both are zero, infinite if only M is."""
    shape = b.shape[0], a.shape[1]
    whole, off = norm(terms, shape), norm([*terms, Term(-1.0, b, a)], shape)
    if whole:
        return off / whole
    return float("inf") if off else 0.0


def inner(left: Sequence[Term], right: Sequence[Term]) -> float:
    """Frobenius inner product of two factored sums: ``sum_ij w_i v_j <B_i^T C_j, A_i D_j^T>``."""
    total = 0.0
    for x in left:
        for y in right:
            rows = np.asarray(x.b, np.float64).T @ y.b
            columns = np.asarray(x.a, np.float64) @ y.a.T
            total += x.weight * y.weight * float(np.vdot(rows, columns))
    return total


def grams(terms: Sequence[Term]) -> Floats:
    """Inner products of all pairs of terms, shape (n, n); all are in memory, in float64."""
    ends = np.cumsum([t.b.shape[1] for t in terms])
    out = np.zeros((len(terms), len(terms)))
    if not len(terms) or not ends[-1]:
        return out
    lefts = np.hstack([t.weight * np.asarray(t.b, np.float64) for t in terms])
    rights = np.vstack([np.asarray(t.a, np.float64) for t in terms])
    for i, term in enumerate(terms):
        start, end = ends[i] - term.b.shape[1], ends[i]
        shared = ((lefts[:, start:end].T @ lefts[:, :end]) * (rights[start:end] @ rights[:end].T)).sum(axis=0)
        for j in range(i + 1):
            out[i, j] = out[j, i] = shared[ends[j] - terms[j].b.shape[1] : ends[j]].sum()
    return out
