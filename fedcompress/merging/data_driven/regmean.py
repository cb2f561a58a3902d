"""RegMean: per linear module the least-squares fit to what each site's module does to its own inputs.

Jin et al. 2023 (arXiv:2212.09849, regression mean of linear layers):
``M = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1`` with Gram matrices ``G_i = X_i^T X_i`` of the module's inputs. The ridge
is added to each site's Gram matrix, not to their sum alone, so that it pulls towards the weighted mean and not towards
zero, and so that merging changes is merging weights. The released code inverts the sum without a ridge, which fails
with fewer tokens than columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats, Module, Pair, pairs_of
from fedcompress.merging.data_driven.factored import Factored, check_matrix, check_number, stacked
from fedcompress.merging.engine import module_of, normalized
from fedcompress.merging.lora_rules.ridge import fit_left, mean_factors
from fedcompress.merging.product import RIDGE, changes
from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Tensors, TensorSpec

Grams = Mapping[str, Floats]
ASYMMETRY = 1e-4  # of the largest entry: what float32 sums leave


def regmean(
    base: Mapping[str, Array],
    updates: Updates,
    grams: Sequence[Grams],
    weights: Sequence[float],
    off_diagonal: float = 0.9,
    ridge: float = 1e-3,
) -> Tensors:
    """RegMean in the layout of the updates.

    With G'_i of ``prepared`` and S = sum_i w_i G'_i, a dense matrix is ``(sum_i w_i dW_i G'_i) S^-1``, solved. Of a
    LoRA module A is the mean of A_i, and B the minimum of the same objective on this A,
    ``sum_i w_i tr (B_i A_i - B A) G'_i (B_i A_i - B A)^T``, with the ridge of ``lora-ridge`` towards the mean of B; for
    M itself see ``regmean_stacked``. Tensors without Gram matrices, such as norms, get the weighted mean.

    One update returns itself; equal Gram matrices give the weighted mean of dense matrices, and of modules
    what ``lora-ridge`` gives in the metric S.

    Args:
        base: the published state.
        updates: of the sites, float32.
        grams: for each site, by module, ``X^T X`` or its mean over tokens, (columns, columns): of every LoRA
            module, and of matrices that are trained whole. The module is the name of the tensor
            without ``.weight`` and without ``.lora_A``.
        weights: finite, nonnegative; normalised here. For the paper's sums over all tokens: tokens of each
            site with means, equal ones with sums.
        off_diagonal: factor of the entries off the diagonal, from 0 to 1, which the paper lowers too.
        ridge: relative to the mean of the diagonal of sum_i w_i G_i, from 1e-9 to 1e6.

    Returns:
        The merged update, float32, in layout order.

    Raises:
        ConfigError: Gram matrices are missing, or not symmetric positive semidefinite; parameters out of range.
        LayoutError: base has another layout than the updates.
    """
    shares, pairs, lone = _checked(base, updates, grams, weights, off_diagonal, ridge)
    out: Tensors = {}
    for pair in pairs:
        module = module_of(pair, base, shares, updates)
        own, total = prepared(_of(grams, pair.name), shares, off_diagonal, ridge)
        out |= changes(pair, module, *_refit(module, own, total))
    for spec in lone:
        if module_name(spec.name) not in grams[0]:
            mean = sum(w * updates.read(i, spec.name).astype(np.float64) for i, w in enumerate(shares))
            out[spec.name] = np.asarray(mean, np.float32).reshape(spec.shape)
            continue
        own, total = prepared(_of(grams, spec.name), shares, off_diagonal, ridge)
        out[spec.name] = _dense(spec, updates, shares, own, total)
    return {t.name: np.ascontiguousarray(out[t.name]) for t in updates.layout.tensors}


def regmean_stacked(
    base: Mapping[str, Array],
    updates: Updates,
    grams: Sequence[Grams],
    weights: Sequence[float],
    off_diagonal: float = 0.9,
    ridge: float = 1e-3,
) -> dict[str, Factored]:
    """Exact RegMean of the LoRA modules alone, by their names: ``M = (sum_i w_i B_i A_i G'_i) S^-1``.

    M stays factored, with rank n r: left are the B_i side by side, right the ``w_i A_i G'_i S^-1`` on top of each
    other. M takes the place of ``B A``, before LoRA's scaling.

    Args and errors are those of ``regmean``.
    """
    shares, pairs, _ = _checked(base, updates, grams, weights, off_diagonal, ridge)
    out = {}
    for pair in pairs:
        module = module_of(pair, base, shares, updates)
        own, total = prepared(_of(grams, pair.name), shares, off_diagonal, ridge)
        parts = zip(shares, module.factors, own, strict=True)
        whole = stacked([Factored(b, weight * (a @ gram)) for weight, (a, b), gram in parts])
        out[pair.name] = Factored(whole.left, _solved(total, whole.right))
    return out


def prepared(
    grams: Sequence[Floats], weights: Floats, off_diagonal: float, ridge: float
) -> tuple[list[Floats], Floats]:
    """Gram matrices of one module, ready to be solved with.

    ``G'_i = c (f G_i + (1 - f) diag(G_i) + lam I)`` with the off-diagonal factor f,
    ``lam = ridge * trace(sum_i w_i G_i) / d``, and a c that cancels in the result and keeps it from overflow.
    Identities where all are 0.

    Returns:
        The G'_i, and ``sum_i w_i G'_i``, which is positive definite; (d, d), float64.

    Raises:
        ConfigError: the sum is not positive definite.
    """
    width = grams[0].shape[0]
    scale = max((float(np.diagonal(g).max(initial=0)) for g in grams), default=0.0)
    level = sum(w * float(np.trace(g / scale)) for w, g in zip(weights, grams, strict=True)) if scale > 0 else 0.0
    if level <= 0:
        return [np.eye(width) for _ in grams], np.eye(width)
    own, total = [], np.zeros((width, width))
    for weight, gram in zip(weights, grams, strict=True):
        one = (0.5 * off_diagonal) * (gram / scale + gram.T / scale)
        np.fill_diagonal(one, np.diagonal(gram) / scale + ridge * level / width)
        own.append(one)
        total += weight * one
    try:
        np.linalg.cholesky(total)
    except np.linalg.LinAlgError as error:
        rule = "must be positive semidefinite, as X^T X is; a larger ridge makes up for rounding"
        raise ConfigError("grams", "a negative eigenvalue", rule) from error
    return own, total


def module_name(name: str) -> str:
    """The module that a weight belongs to, as torch names it."""
    return name.removesuffix(".weight")


def _refit(module: Module, own: Sequence[Floats], total: Floats) -> tuple[Floats, Floats]:
    """Mean A, and B by least squares in the metric of the inputs."""
    a, b = mean_factors(module)
    if len(module.factors) == 1:
        return a, b
    product = np.zeros_like(b)
    for weight, (own_a, own_b), gram in zip(module.weights, module.factors, own, strict=True):
        product += weight * (own_b @ (own_a @ gram @ a.T))
    return a, fit_left(product, a @ np.linalg.cholesky(total), b, RIDGE)


def _dense(spec: TensorSpec, updates: Updates, weights: Floats, own: Sequence[Floats], total: Floats) -> Array:
    """A matrix that is trained whole."""
    right = np.zeros(spec.shape)
    for site, weight in enumerate(weights):
        right += weight * (updates.read(site, spec.name).reshape(spec.shape).astype(np.float64) @ own[site])
    merged: Array = _solved(total, right).astype(np.float32)
    return merged


def _solved(total: Floats, right: Floats) -> Floats:
    """``right total^-1`` for a symmetric matrix."""
    found: Floats = np.asarray(np.linalg.solve(total, right.T).T, np.float64)
    return found


def _of(grams: Sequence[Grams], name: str) -> list[Floats]:
    return [np.asarray(site[module_name(name)], np.float64) for site in grams]


def _checked(
    base: Mapping[str, Array],
    updates: Updates,
    grams: Sequence[Grams],
    weights: Sequence[float],
    off_diagonal: float,
    ridge: float,
) -> tuple[Floats, list[Pair], list[TensorSpec]]:
    check_number("off_diagonal", off_diagonal, 0, 1)
    check_number("ridge", ridge, 1e-9, 1e6)
    shares = normalized(weights, updates.count)
    updates.layout.check(base, what="regmean: base")
    if len(grams) != updates.count:
        raise ConfigError("grams", len(grams), f"must be {updates.count}, one for each update")
    pairs, lone = pairs_of(updates.layout)
    widths = {module_name(t.name): t.shape[1] for t in lone if len(t.shape) == 2}
    widths |= {module_name(p.name): p.shape[1] for p in pairs}
    needed = {module_name(p.name) for p in pairs} | set(grams[0])
    for site, own in enumerate(grams):
        missing, extra = sorted(needed - set(own)), sorted(set(own) - set(widths))
        if missing or extra:
            rule = "must be of every LoRA module, of matrices alone, and of the same modules at every site"
            raise ConfigError(f"grams.{site}", f"missing {missing[:3]}, extra {extra[:3]}", rule)
        for name, gram in own.items():
            _check_gram(f"grams.{site}.{name}", np.asarray(gram, np.float64), widths[name])
    return shares, pairs, lone


def _check_gram(field: str, gram: Floats, width: int) -> None:
    """Raise unless it can be a Gram matrix: square, finite, symmetric, and no entry above what its diagonal allows."""
    check_matrix(field, gram, (width, width))
    top = float(np.abs(gram).max(initial=0))
    if not top:
        return
    scaled = gram / top
    worst = float(np.abs(scaled - scaled.T).max())
    if worst > ASYMMETRY:
        raise ConfigError(field, f"asymmetry {worst:.2g} of the largest entry", "must be symmetric")
    diagonal = np.diagonal(scaled)
    bound = np.sqrt(np.maximum(diagonal, 0))
    if diagonal.min() < 0 or (np.abs(scaled) > np.outer(bound, bound) + ASYMMETRY).any():
        raise ConfigError(field, f"smallest diagonal {gram.diagonal().min():.3g}", "must be positive semidefinite")
