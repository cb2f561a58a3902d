"""WIDEN: each column of a weight matrix counts by how far its length and its direction have moved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, pairs_of
from fedcompress.merging.data_driven.factored import Factored, change_of, check_matrix, check_number, stacked
from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Tensors

COLUMNS = 256  # that are dense at a time


class Change(Protocol):
    """What a site adds to a matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        ...

    def columns(self, start: int, stop: int) -> Floats:
        """Some columns, dense, float64."""
        ...


@dataclass(frozen=True)
class Dense:
    """A change that is held as a matrix, (rows, columns), of any float dtype."""

    matrix: Array | Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def columns(self, start: int, stop: int) -> Floats:
        """Some columns."""
        return self.matrix[:, start:stop].astype(np.float64)


def widen(
    base: Mapping[str, Array], updates: Updates, t: float = 1.0, s: float = 1.0, transposed: Collection[str] = ()
) -> Tensors:
    """WIDEN of dense weights: ``sum_i c_i * delta_i`` with ``c_i`` of each column, see ``column_weights``.

    Yu et al. 2024 (arXiv:2408.03092, weight disentanglement). It has no weights of sites. A tensor of more than two
    dimensions is a matrix of its first dimension and all others; one of less has entries for columns, scored by
    ``|delta|`` itself and not by rank, as in the released code. Beside the result, memory is a tensor of one site.

    Args:
        base: dense weights that all sites started from, float32, in layout order.
        updates: their changes.
        t: above t times the mean score a column is important to a site, from 0 to 100.
        s: the weight of important columns, from 0 to 100. With 1, columns that are important to
            many sites add up; with 1/n they are averaged.
        transposed: tensors whose rows are inputs, such as embeddings: their rows are what counts as a column.

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
    out: Tensors = {}
    for spec in updates.layout.tensors:
        if not spec.numel:
            out[spec.name] = np.zeros(spec.shape, np.float32)
            continue
        turn, shape = spec.name in transposed, (spec.shape[0] if spec.shape else 1, -1)
        if spec.name not in matrices:
            scores = np.stack([np.abs(updates.read(i, spec.name).astype(np.float64)) for i in range(updates.count)])
            weights = _calibrated(scores, t, s)
            shape = (1, -1)
        else:
            weight = _turned(base[spec.name].reshape(shape), turn)
            changes = (Dense(_turned(updates.read(i, spec.name).reshape(shape), turn)) for i in range(updates.count))
            weights = _weights_of([_moved(weight, change) for change in changes], t, s)
        total = np.zeros(base[spec.name].reshape(shape).shape)
        for site, own in enumerate(weights):
            total += updates.read(site, spec.name).reshape(shape) * (own[:, None] if turn else own)
        out[spec.name] = total.reshape(spec.shape).astype(np.float32)
    return out


def widen_factors(
    weights: Mapping[str, Array],
    base: Mapping[str, Array],
    updates: Updates,
    scaling: float = 1.0,
    t: float = 1.0,
    s: float = 1.0,
) -> dict[str, Factored]:
    """WIDEN of the LoRA modules alone, by their names: changes of the dense weights, still factored, with rank 2 n r.

    The weight of a column multiplies that column of the right factor, so nothing dense is kept: products are
    looked at ``COLUMNS`` columns at a time.

    Args:
        weights: for each module the dense weight that it has now, (rows, columns): the frozen one plus
            ``scaling * B A`` of the published factors.
        base: the published state.
        updates: of the sites.
        scaling: alpha / r, or what the adapter multiplies ``B A`` with.
        t: as in ``widen``.
        s: as in ``widen``.

    Returns:
        For each module the change of the dense weight, scaling included.

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
    out = {}
    for pair in pairs:
        check_matrix(f"weights.{pair.name}", weights[pair.name], pair.shape)
        changes = [change_of(pair, base, updates, site, scaling) for site in range(updates.count)]
        shares = column_weights(weights[pair.name], changes, t, s)
        out[pair.name] = stacked([Factored(c.left, c.right * own) for c, own in zip(changes, shares, strict=True)])
    return out


def column_weights(weight: Array | Floats, changes: Sequence[Change], t: float = 1.0, s: float = 1.0) -> Floats:
    """Weights of the columns of each site, (sites, columns), float64.

    For each site its columns are ranked twice, by how much their length and by how much their direction has changed
    (``movement``); a score is rank / columns. Scores become weights by a softmax over the sites, but s where the score
    is above t times its mean over columns. The result is the mean of both weights.

    Equal movements share their mean rank, where the released code ranks them by position. Scores lie in [0, 1), so
    that the softmax is nearly uniform: the ratio of two of its weights is below e.

    Args:
        weight: (rows, columns).
        changes: what each site adds to it, dense or factored.
        t: as in ``widen``.
        s: as in ``widen``.

    Raises:
        ConfigError: no change, a change has another shape, or t or s are out of range.
    """
    _check_parameters(len(changes), t, s)
    for site, change in enumerate(changes):
        if change.shape != weight.shape:
            raise ConfigError(f"changes.{site}", list(change.shape), f"must have the shape {list(weight.shape)}")
    return _weights_of([_moved(weight, change) for change in changes], t, s)


def movement(weight: Floats, change: Floats) -> tuple[Floats, Floats]:
    """How far the length and the direction of each column have moved: ``| |w + d| - |w| |`` and ``1 - cos(w + d, w)``.

    Both without cancellation, in float64, since a LoRA update is a thousandth of its weight or less, where 1 - cos is
    some 1e-7 and float32 rounds it away::

        |w + d| - |w|  =  d . (2 w + d) / (|w + d| + |w|)
        1 - cos        =  sin^2 / (1 + cos),   sin = |p| / |w + d|,   p = d - w (w . d) / |w|^2

    which to first order is ``0.5 |p|^2 / |w|^2``. Where w or w + d is 0, the direction has moved by 1 unless d is 0.

    Args:
        weight: (rows, columns), float64.
        change: likewise.

    Returns:
        Two vectors of one value for each column.
    """
    new = weight + change
    old_length, new_length = np.linalg.norm(weight, axis=0), np.linalg.norm(new, axis=0)
    lengths = old_length + new_length
    gained = np.einsum("ij,ij->j", change, weight + new)
    length = np.abs(np.divide(gained, lengths, out=np.zeros_like(lengths), where=lengths > 0))
    both = (old_length > 0) & (new_length > 0)
    safe_old, safe_new = np.where(both, old_length, 1), np.where(both, new_length, 1)
    unit = weight / safe_old
    apart = change - unit * np.einsum("ij,ij->j", unit, change)
    cosine = np.clip(np.einsum("ij,ij->j", unit, new) / safe_new, -1, 1)
    sine = np.linalg.norm(apart, axis=0) / safe_new
    direction = np.where(cosine > 0, sine * sine / (1 + np.maximum(cosine, 0)), 1 - cosine)
    return length, np.where(both, direction, np.any(change != 0, axis=0))


def _moved(weight: Array | Floats, change: Change) -> tuple[Floats, Floats]:
    """``movement``, some columns at a time."""
    parts = [
        movement(weight[:, at : at + COLUMNS].astype(np.float64), change.columns(at, at + COLUMNS))
        for at in range(0, weight.shape[1], COLUMNS)
    ]
    empty: list[Floats] = [np.zeros(0)]
    return np.concatenate(empty + [p[0] for p in parts]), np.concatenate(empty + [p[1] for p in parts])


def _weights_of(moved: Sequence[tuple[Floats, Floats]], t: float, s: float) -> Floats:
    lengths, directions = (np.stack([_ranks(m[kind]) for m in moved]) for kind in (0, 1))
    both: Floats = 0.5 * (_calibrated(lengths, t, s) + _calibrated(directions, t, s))
    return both


def _ranks(values: Floats) -> Floats:
    """Rank / count from 0 up, equal values at their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean = np.cumsum(counts) - 0.5 * (counts + 1)
    ranks: Floats = mean[place] / max(values.size, 1)
    return ranks


def _calibrated(scores: Floats, t: float, s: float) -> Floats:
    """Softmax over the sites, and s where a score is above t times its site's mean."""
    grown = np.exp(scores - scores.max(axis=0))
    weights = grown / grown.sum(axis=0)
    level = t * scores.mean(axis=1, keepdims=True)
    return np.where(scores > level * (1 + 2.0**-40), s, weights)


def _turned(matrix: Array, turn: bool) -> Array:
    return matrix.T if turn else matrix


def _check_parameters(count: int, t: float, s: float) -> None:
    if not count:
        raise ConfigError("updates", 0, "must be at least one")
    check_number("t", t, 0, 100)
    check_number("s", s, 0, 100)
