"""RegMean fits each linear module, by least squares, to what each site's module does to that site's own inputs.

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
from fedcompress.merging.data_driven.factored import Factored, check_matrix, check_number, stack_factors
from fedcompress.merging.engine import load_module, normalize_weights
from fedcompress.merging.lora_rules.ridge import average_factors, fit_left
from fedcompress.merging.product import RIDGE, subtract_published
from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Tensors, TensorSpec

Grams = Mapping[str, Floats]  # by module, (columns, columns), float64: X^T X of the module's inputs X
ASYMMETRY = 1e-4  # share of the largest entry that float32 sums may leave of a difference that is 0


def regmean(
    base: Mapping[str, Array],
    updates: Updates,
    grams: Sequence[Grams],
    weights: Sequence[float],
    off_diagonal: float = 0.9,
    ridge: float = 1e-3,
) -> Tensors:
    """Merge updates by RegMean, in the layout of the updates.

    With G'_i of ``prepare_grams`` and ``S = sum_i w_i G'_i``, a dense matrix becomes ``(sum_i w_i dW_i G'_i) S^-1``,
    which is solved and not inverted. In a LoRA module A becomes the mean of A_i, and B the minimum of the same
    objective on this A, ``sum_i w_i tr (B_i A_i - B A) G'_i (B_i A_i - B A)^T``, with the ridge of ``lora-ridge``
    towards the mean of B; for M itself see ``regmean_stacked``. Tensors without Gram matrices, such as norms, get the
    weighted mean.

    One update returns itself; equal Gram matrices give the weighted mean of dense matrices, and for modules what
    ``lora-ridge`` gives in the metric S.

    Args:
        base: the published state.
        updates: updates of the sites, float32.
        grams: for each site, by module, ``X^T X`` or its mean over tokens, shape (columns, columns): of every LoRA
            module, and of any matrix that is trained whole. The name of a module is that of its tensor without
            ``.weight`` and without ``.lora_A``.
        weights: one finite, nonnegative number for each site; they are divided by their sum here. For the paper's sums
            over all tokens, give the tokens of each site with means, and equal weights with sums.
        off_diagonal: factor of the entries off the diagonal, from 0 to 1, which the paper lowers too.
        ridge: added to the diagonal, relative to the mean of the diagonal of ``sum_i w_i G_i``, from 1e-9 to 1e6.

    Returns:
        The merged update, float32, in layout order.

    Raises:
        ConfigError: Gram matrices are missing, or not symmetric positive semidefinite; parameters out of range.
        LayoutError: base has another layout than the updates.
    """
    shares, pairs, lone = _check_inputs(base, updates, grams, weights, off_diagonal, ridge)
    merged: Tensors = {}
    for pair in pairs:
        module = load_module(pair, base, shares, updates)
        prepared, total = prepare_grams(_select_grams(grams, pair.name), shares, off_diagonal, ridge)
        merged |= subtract_published(pair, module, *_refit(module, prepared, total))
    for spec in lone:
        if module_name(spec.name) not in grams[0]:
            mean = sum(w * updates.read(i, spec.name).astype(np.float64) for i, w in enumerate(shares))
            merged[spec.name] = np.asarray(mean, np.float32).reshape(spec.shape)
            continue
        prepared, total = prepare_grams(_select_grams(grams, spec.name), shares, off_diagonal, ridge)
        merged[spec.name] = _merge_dense(spec, updates, shares, prepared, total)
    return {t.name: np.ascontiguousarray(merged[t.name]) for t in updates.layout.tensors}


def regmean_stacked(
    base: Mapping[str, Array],
    updates: Updates,
    grams: Sequence[Grams],
    weights: Sequence[float],
    off_diagonal: float = 0.9,
    ridge: float = 1e-3,
) -> dict[str, Factored]:
    """Merge the LoRA modules alone by exact RegMean: ``M = (sum_i w_i B_i A_i G'_i) S^-1``, which stays factored.

    Args:
        base: as of ``regmean``.
        updates: as of ``regmean``.
        grams: as of ``regmean``.
        weights: as of ``regmean``.
        off_diagonal: as of ``regmean``.
        ridge: as of ``regmean``.

    Returns:
        M by name of the module, with rank n r: the left factor has the B_i side by side, the right one the
        ``w_i A_i G'_i S^-1`` on top of each other. M takes the place of ``B A``, before LoRA's scaling.

    Raises:
        ConfigError: as of ``regmean``.
        LayoutError: as of ``regmean``.
    """
    shares, pairs, _ = _check_inputs(base, updates, grams, weights, off_diagonal, ridge)
    merged: dict[str, Factored] = {}
    for pair in pairs:
        module = load_module(pair, base, shares, updates)
        prepared, total = prepare_grams(_select_grams(grams, pair.name), shares, off_diagonal, ridge)
        parts = zip(shares, module.factors, prepared, strict=True)
        whole = stack_factors([Factored(b, weight * (a @ gram)) for weight, (a, b), gram in parts])
        merged[pair.name] = Factored(whole.left, _divide_right(whole.right, total))
    return merged


def prepare_grams(
    grams: Sequence[Floats], weights: Floats, off_diagonal: float, ridge: float
) -> tuple[list[Floats], Floats]:
    """Prepare the Gram matrices of one module to be solved with.

    ``G'_i = c (f G_i + (1 - f) diag(G_i) + lam I)`` with the off-diagonal factor f,
    ``lam = ridge * trace(sum_i w_i G_i) / d``, and a factor c that cancels in the result and keeps it from overflow.

    Args:
        grams: for each site, shape (d, d), float64.
        weights: shape (sites,), float64; they add up to 1.
        off_diagonal: the factor f, from 0 to 1.
        ridge: relative ridge, above 0.

    Returns:
        The G'_i, and ``sum_i w_i G'_i``, which is positive definite; each (d, d), float64. They are identities if all
        Gram matrices are 0.

    Raises:
        ConfigError: the sum is not positive definite.
    """
    width = grams[0].shape[0]
    scale = max((float(np.diagonal(g).max(initial=0)) for g in grams), default=0.0)
    level = sum(w * float(np.trace(g / scale)) for w, g in zip(weights, grams, strict=True)) if scale > 0 else 0.0
    if level <= 0:
        return [np.eye(width) for _ in grams], np.eye(width)
    prepared: list[Floats] = []
    total = np.zeros((width, width))
    for weight, gram in zip(weights, grams, strict=True):
        one = (0.5 * off_diagonal) * (gram / scale + gram.T / scale)
        np.fill_diagonal(one, np.diagonal(gram) / scale + ridge * level / width)
        prepared.append(one)
        total += weight * one
    try:
        np.linalg.cholesky(total)
    except np.linalg.LinAlgError as error:
        rule = "must be positive semidefinite, as X^T X is; a larger ridge makes up for rounding"
        raise ConfigError("grams", "a negative eigenvalue", rule) from error
    return prepared, total


def module_name(name: str) -> str:
    """Return the name of the module that a weight belongs to, as torch names it."""
    return name.removesuffix(".weight")


def _refit(module: Module, grams: Sequence[Floats], total: Floats) -> tuple[Floats, Floats]:
    """Return the mean A, and B by least squares in the metric of the inputs."""
    mean_a, mean_b = average_factors(module)
    if len(module.factors) == 1:
        return mean_a, mean_b
    product = np.zeros_like(mean_b)
    for weight, (a, b), gram in zip(module.weights, module.factors, grams, strict=True):
        product += weight * (b @ (a @ gram @ mean_a.T))
    return mean_a, fit_left(product, mean_a @ np.linalg.cholesky(total), mean_b, RIDGE)


def _merge_dense(spec: TensorSpec, updates: Updates, weights: Floats, grams: Sequence[Floats], total: Floats) -> Array:
    """Merge a matrix that is trained whole."""
    right = np.zeros(spec.shape)
    for site, weight in enumerate(weights):
        right += weight * (updates.read(site, spec.name).reshape(spec.shape).astype(np.float64) @ grams[site])
    merged: Array = _divide_right(right, total).astype(np.float32)
    return merged


def _divide_right(right: Floats, total: Floats) -> Floats:
    """Return ``right total^-1`` for a symmetric matrix ``total``."""
    solved: Floats = np.asarray(np.linalg.solve(total, right.T).T, np.float64)
    return solved


def _select_grams(grams: Sequence[Grams], name: str) -> list[Floats]:
    """Return the Gram matrices of the module that a weight belongs to, one for each site."""
    return [np.asarray(site[module_name(name)], np.float64) for site in grams]


def _check_inputs(
    base: Mapping[str, Array],
    updates: Updates,
    grams: Sequence[Grams],
    weights: Sequence[float],
    off_diagonal: float,
    ridge: float,
) -> tuple[Floats, list[Pair], list[TensorSpec]]:
    """Return shares of the sites, LoRA modules and other tensors, or raise."""
    check_number("off_diagonal", off_diagonal, 0, 1)
    check_number("ridge", ridge, 1e-9, 1e6)
    shares = normalize_weights(weights, updates.count)
    updates.layout.check(base, what="regmean: base")
    if len(grams) != updates.count:
        raise ConfigError("grams", len(grams), f"must be {updates.count}, one for each update")
    pairs, lone = pairs_of(updates.layout)
    widths = {module_name(t.name): t.shape[1] for t in lone if len(t.shape) == 2}
    widths |= {module_name(p.name): p.shape[1] for p in pairs}
    needed = {module_name(p.name) for p in pairs} | set(grams[0])
    for site, own in enumerate(grams):
        missing = sorted(needed - set(own))
        extra = sorted(set(own) - set(widths))
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
