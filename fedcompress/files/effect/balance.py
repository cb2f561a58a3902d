"""Balances the factors of products, so that an error counts in all of them as it does in the product.

Factors of a product are not determined by it: B G^-1 and G A have the product of B and A. As they are saved, nearly
all energy is in A, which has its random start, and nearly all that was learnt in B, which has little. Balanced, both
have the square roots of the singular values (``merging.lowrank``, Eckart and Young 1936). The error of an entry of
component j is then weighed by the root of singular value j: a code that has one step for all entries is therefore
given each component times that root, rounded to a power of two, by which a decoder divides exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedcompress.files.coded_form import MAX_EXPONENT, WHOLE, Exponents
from fedcompress.files.effect.units import Unit
from fedcompress.merging.lowrank import Term, spectrum
from fedcompress.types import Array, Tensors

Floats = NDArray[np.float64]
RANGE = 20  # powers of two between the roots of singular values that are told apart


def split_experts(left: Array | Floats, right: Array | Floats, experts: int) -> list[tuple[Floats, Floats]]:
    """Split a pair into those of its experts, as matrices with kernels flattened.

    Args:
        left: shape (rows, experts * rank) or with further dimensions of 1.
        right: shape (experts * rank, ...).
        experts: how many there are.

    Returns:
        For each expert, float64 of shapes (rows, rank) and (rank, columns).
    """
    b = left.reshape(left.shape[0], -1, experts).astype(np.float64)
    a = right.reshape(experts, right.shape[0] // experts, -1).astype(np.float64)
    return [(b[:, :, e], a[e]) for e in range(experts)]


def balance_unit(unit: Unit, values: Mapping[str, Array], *, one_step: bool) -> tuple[Tensors, dict[str, Exponents]]:
    """Find balanced factors of the product that a unit is.

    Args:
        unit: a product.
        values: its tensors, finite float32 by name.
        one_step: True if the code has one step for all entries; only then there are exponents.

    Returns:
        The tensors, of the shapes that they had; and the exponents to code them with. A diagonal becomes 1.
    """
    tensors = {n: values[n] for n in unit.names}
    if unit.diagonal:
        right = unit.legs[0][-1]
        scaled = tensors[right] * tensors[unit.diagonal].reshape(-1, *[1] * (tensors[right].ndim - 1))
        tensors |= {right: scaled, unit.diagonal: np.ones_like(tensors[unit.diagonal])}
    norms = []
    roots: dict[str, Floats] = {}  # by the name of the left factor: roots of the singular values, in its columns' order
    for leg in unit.legs:
        if len(leg) == 1:
            norms.append(float(np.linalg.norm(tensors[leg[0]].astype(np.float64))))
            continue
        pair, root = _balance_pair(tensors[leg[0]], tensors[leg[1]], unit.experts)
        tensors |= dict(zip(leg, pair, strict=True))
        roots[leg[0]] = root
        norms.append(math.sqrt(float((root**4).sum())))
    if not all(norms):
        return tensors, {}
    target = math.prod(norms) ** (1 / len(norms))
    weight = unit.scaling * target ** (len(norms) - 1) / _spread(unit, tensors)
    exponents: dict[str, Exponents] = {}
    for leg, norm in zip(unit.legs, norms, strict=True):
        share = (target / norm) ** (1 / len(leg))
        for name in leg:
            tensors[name] = (tensors[name] * share).astype(np.float32)
        if not one_step:
            continue
        if len(leg) == 1:
            exponents[leg[0]] = Exponents(axis=WHOLE, values=_round_exponents(np.array([weight])))
            continue
        root = roots[leg[0]] * share
        root = np.maximum(root, root.max() * 2.0**-RANGE)
        by_column = _round_exponents(weight * root)
        exponents[leg[0]] = Exponents(axis=1, values=by_column)
        by_row = np.array(by_column).reshape(-1, unit.experts).T.reshape(-1)
        exponents[leg[1]] = Exponents(axis=0, values=tuple(by_row.tolist()))
    return tensors, exponents


def _balance_pair(left: Array, right: Array, experts: int) -> tuple[tuple[Array, Array], Floats]:
    """Return balanced factors of the shapes given, and the roots of the singular values by column of the left one."""
    rank = left.shape[1] // experts
    lefts = np.zeros((left.shape[0], rank, experts))
    rights = np.zeros((experts, rank, right.size // right.shape[0]))
    roots = np.zeros((rank, experts))
    for e, (b, a) in enumerate(split_experts(left, right, experts)):
        found = spectrum([Term(1.0, b, a)], (b.shape[0], a.shape[1])).truncate(rank)
        lefts[:, :, e] = found.b
        rights[e] = found.a
        roots[: found.values.size, e] = np.sqrt(found.values[:rank])
    pair = (
        np.ascontiguousarray(lefts.reshape(left.shape), np.float32),
        np.ascontiguousarray(rights.reshape(right.shape), np.float32),
    )
    return pair, roots.reshape(-1)


def _spread(unit: Unit, tensors: Mapping[str, Array]) -> float:
    """Return what the norm of an entrywise product is smaller than the product of norms by, if entries are alike."""
    if not unit.entrywise:
        return 1.0
    left, right = unit.legs[0]
    return math.sqrt(tensors[left].shape[0] * tensors[right].shape[1])


def _round_exponents(factors: Floats) -> tuple[int, ...]:
    rounded = np.clip(np.rint(np.log2(factors)), -MAX_EXPONENT, MAX_EXPONENT)
    return tuple(int(v) for v in rounded)
