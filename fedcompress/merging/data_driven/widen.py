"""WIDEN counts each column of a weight matrix by how far its length and its direction have moved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, pairs_of
from fedcompress.merging.data_driven.factored import (
    Factored,
    check_matrix,
    check_number,
    factor_change,
    stack_factors,
)
from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Tensors, TensorSpec

COLUMNS = 256  # columns of a factored matrix that are dense at a time
_TIE = 2.0**-40  # share of a level that rounding may put a score above it


class Change(Protocol):
    """A change is what a site adds to a matrix, dense or factored."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the matrix, (rows, columns)."""
        ...

    def columns(self, start: int, stop: int) -> Floats:
        """Return some columns, dense, float64, shape (rows, stop - start)."""
        ...


@dataclass(frozen=True)
class Dense:
    """A dense change is held as a matrix."""

    matrix: Array | Floats  # (rows, columns), of any float dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the matrix, (rows, columns)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def columns(self, start: int, stop: int) -> Floats:
        """Return some columns, float64."""
        return self.matrix[:, start:stop].astype(np.float64)


def widen(
    base: Mapping[str, Array], updates: Updates, t: float = 1.0, s: float = 1.0, transposed: Collection[str] = ()
) -> Tensors:
    """Merge dense weights by WIDEN: ``sum_i c_i * delta_i`` with ``c_i`` of each column, see ``column_weights``.

    Yu et al. 2024 (arXiv:2408.03092, weight disentanglement). It has no weights of sites. A tensor of more than two
    dimensions is a matrix of its first dimension and all others. One of less than two has entries in place of columns,
    which are scored by ``|delta|`` itself and not by rank, as in the released code. Beside the result, memory is one
    tensor of one site.

    Args:
        base: dense weights that all sites started from, float32, in layout order.
        updates: changes of these weights at the sites.
        t: a column is important to a site if its score is above t times the mean score; from 0 to 100.
        s: the weight of important columns, from 0 to 100. With 1, columns that are important to many sites add up;
            with 1 / n they are averaged.
        transposed: names of tensors whose rows are inputs, such as embeddings: their rows are what counts as a column.

    Returns:
        The merged update, float32, in layout order.

    Raises:
        ConfigError: no update, a name in ``transposed`` is not of a matrix, or t or s are out of range.
        LayoutError: base has another layout than the updates.
    """
    _check_parameters(updates.count, t, s)
    updates.layout.check(base, what="widen: base")
    matrices = {spec.name for spec in updates.layout.tensors if len(spec.shape) >= 2}
    if unknown := sorted(set(transposed) - matrices):
        raise ConfigError("transposed", unknown[:3], "must be names of tensors with two dimensions or more")
    merged: Tensors = {}
    for spec in updates.layout.tensors:
        if not spec.numel:
            merged[spec.name] = np.zeros(spec.shape, np.float32)
        elif spec.name in matrices:
            merged[spec.name] = _merge_matrix(spec, base[spec.name], updates, t, s, spec.name in transposed)
        else:
            merged[spec.name] = _merge_vector(spec, updates, t, s)
    return merged


def _merge_matrix(spec: TensorSpec, base: Array, updates: Updates, t: float, s: float, is_transposed: bool) -> Array:
    shape = (spec.shape[0], -1)
    weight = _transpose_if(base.reshape(shape), is_transposed)
    changes = (
        Dense(_transpose_if(updates.read(site, spec.name).reshape(shape), is_transposed))
        for site in range(updates.count)
    )
    weights = _combine_ranks([_move_in_parts(weight, change) for change in changes], t, s)
    total = np.zeros(base.reshape(shape).shape)
    for site, own in enumerate(weights):
        total += updates.read(site, spec.name).reshape(shape) * (own[:, None] if is_transposed else own)
    return total.reshape(spec.shape).astype(np.float32)


def _merge_vector(spec: TensorSpec, updates: Updates, t: float, s: float) -> Array:
    """Merge a tensor of less than two dimensions: each entry is scored by its magnitude."""
    sites = range(updates.count)
    scores = np.stack([np.abs(updates.read(site, spec.name).astype(np.float64)) for site in sites])
    total = np.zeros((1, spec.numel))
    for site, own in enumerate(_calibrate(scores, t, s)):
        total += updates.read(site, spec.name).reshape(1, -1) * own
    return total.reshape(spec.shape).astype(np.float32)


def widen_factors(
    weights: Mapping[str, Array],
    base: Mapping[str, Array],
    updates: Updates,
    scaling: float = 1.0,
    t: float = 1.0,
    s: float = 1.0,
) -> dict[str, Factored]:
    """Merge the LoRA modules alone by WIDEN; the changes of the dense weights stay factored, with rank 2 n r.

    The weight of a column multiplies that column of the right factor, so nothing dense is kept: products are looked
    at ``COLUMNS`` columns at a time.

    Args:
        weights: for each module the dense weight that it has now, shape (rows, columns): the frozen one plus
            ``scaling * B A`` of the published factors.
        base: the published state.
        updates: updates of the sites.
        scaling: what the adapter multiplies ``B A`` with, alpha / r.
        t: as in ``widen``.
        s: as in ``widen``.

    Returns:
        By name of the module the change of the dense weight, scaling included.

    Raises:
        ConfigError: a module has no dense weight, or one of another shape or with NaN; parameters out of range.
        LayoutError: base has another layout than the updates.
    """
    _check_parameters(updates.count, t, s)
    check_number("scaling", scaling, -1e6, 1e6)
    updates.layout.check(base, what="widen: base")
    pairs, _ = pairs_of(updates.layout)
    if missing := [p.name for p in pairs if p.name not in weights]:
        raise ConfigError("weights", f"missing {missing[:3]}", "must have the dense weight of every LoRA module")
    merged: dict[str, Factored] = {}
    for pair in pairs:
        check_matrix(f"weights.{pair.name}", weights[pair.name], pair.shape)
        changes = [factor_change(pair, base, updates, site, scaling) for site in range(updates.count)]
        shares = column_weights(weights[pair.name], changes, t, s)
        merged[pair.name] = stack_factors(
            [Factored(c.left, c.right * own) for c, own in zip(changes, shares, strict=True)]
        )
    return merged


def column_weights(weight: Array | Floats, changes: Sequence[Change], t: float = 1.0, s: float = 1.0) -> Floats:
    """Compute how much each column of each site counts.

    For each site its columns are ranked twice: by how much their length has changed, and by how much their direction
    has (``movement``). A score is rank / columns. Scores become weights by a softmax over the sites, but the weight is
    s where the score is above t times its mean over columns. The result is the mean of the weights by length and by
    direction.

    Equal movements share their mean rank, where the released code ranks them by position. Scores lie in [0, 1), so
    that the softmax is nearly uniform: the ratio of two of its weights is below e.

    Args:
        weight: the matrix that is changed, shape (rows, columns).
        changes: what each site adds to it, dense or factored.
        t: as in ``widen``.
        s: as in ``widen``.

    Returns:
        Shape (sites, columns), float64.

    Raises:
        ConfigError: no change, a change has another shape, or t or s are out of range.
    """
    _check_parameters(len(changes), t, s)
    for site, change in enumerate(changes):
        if change.shape != weight.shape:
            raise ConfigError(f"changes.{site}", list(change.shape), f"must have the shape {list(weight.shape)}")
    return _combine_ranks([_move_in_parts(weight, change) for change in changes], t, s)


def movement(weight: Floats, change: Floats) -> tuple[Floats, Floats]:
    """Measure how far each column has moved: in length, ``| |w + d| - |w| |``, and in direction, ``1 - cos(w + d, w)``.

    Both are computed without cancellation, in float64, since a LoRA update is a thousandth of its weight or less,
    where 1 - cos is some 1e-7 and float32 rounds it away::

        |w + d| - |w|  =  d . (2 w + d) / (|w + d| + |w|)
        1 - cos        =  sin^2 / (1 + cos),   sin = |p| / |w + d|,   p = d - w (w . d) / |w|^2

    which to first order is ``0.5 |p|^2 / |w|^2``. Where w or w + d is 0, the direction has moved by 1 unless d is 0.

    Args:
        weight: w, shape (rows, columns), float64.
        change: d, of the same shape and dtype.

    Returns:
        Two vectors of one value for each column.
    """
    new = weight + change
    old_length = np.linalg.norm(weight, axis=0)
    new_length = np.linalg.norm(new, axis=0)
    lengths = old_length + new_length
    gained = np.einsum("ij,ij->j", change, weight + new)
    length = np.abs(np.divide(gained, lengths, out=np.zeros_like(lengths), where=lengths > 0))
    has_direction = (old_length > 0) & (new_length > 0)
    safe_old = np.where(has_direction, old_length, 1)
    safe_new = np.where(has_direction, new_length, 1)
    unit = weight / safe_old
    perpendicular = change - unit * np.einsum("ij,ij->j", unit, change)
    cosine = np.clip(np.einsum("ij,ij->j", unit, new) / safe_new, -1, 1)
    sine = np.linalg.norm(perpendicular, axis=0) / safe_new
    direction = np.where(cosine > 0, sine * sine / (1 + np.maximum(cosine, 0)), 1 - cosine)
    return length, np.where(has_direction, direction, np.any(change != 0, axis=0))


def _move_in_parts(weight: Array | Floats, change: Change) -> tuple[Floats, Floats]:
    """Compute ``movement``, some columns at a time."""
    parts = [
        movement(weight[:, first : first + COLUMNS].astype(np.float64), change.columns(first, first + COLUMNS))
        for first in range(0, weight.shape[1], COLUMNS)
    ]
    empty: list[Floats] = [np.zeros(0)]
    return np.concatenate(empty + [p[0] for p in parts]), np.concatenate(empty + [p[1] for p in parts])


def _combine_ranks(movements: Sequence[tuple[Floats, Floats]], t: float, s: float) -> Floats:
    """Turn the movements of all sites into weights of columns, shape (sites, columns)."""
    lengths = np.stack([_rank(length) for length, _ in movements])
    directions = np.stack([_rank(direction) for _, direction in movements])
    weights: Floats = 0.5 * (_calibrate(lengths, t, s) + _calibrate(directions, t, s))
    return weights


def _rank(values: Floats) -> Floats:
    """Return rank / count from 0 up, with equal values at their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean = np.cumsum(counts) - 0.5 * (counts + 1)
    ranks: Floats = mean[place] / max(values.size, 1)
    return ranks


def _calibrate(scores: Floats, t: float, s: float) -> Floats:
    """Return the softmax of scores over the sites, but s where a score is above t times its site's mean."""
    grown = np.exp(scores - scores.max(axis=0))
    weights = grown / grown.sum(axis=0)
    level = t * scores.mean(axis=1, keepdims=True)
    return np.where(scores > level * (1 + _TIE), s, weights)


def _transpose_if(matrix: Array, is_transposed: bool) -> Array:
    return matrix.T if is_transposed else matrix


def _check_parameters(count: int, t: float, s: float) -> None:
    if not count:
        raise ConfigError("updates", 0, "must be at least one")
    check_number("t", t, 0, 100)
    check_number("s", s, 0, 100)
