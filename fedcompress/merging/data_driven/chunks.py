"""Decides how many coefficients each module gets: more where more is at stake."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.data_driven.factored import Factored


def compute_importance(coefficients: Mapping[str, Floats], changes: Mapping[str, list[Factored]]) -> dict[str, float]:
    """Compute how important each module m is: ``sum_i mean|c_im| * |dW_im| * rows * columns``.

    Expert Merging++ (Zhang et al. 2025, arXiv:2509.25712, importance-guided chunking) multiplies learned
    coefficients, norm of the update and number of parameters; its released code takes the counts by hand. How these
    are joined over sites and chunks is ours: a sum over sites, the mean over chunks. The norm is the Frobenius norm of
    the product.

    Args:
        coefficients: by module, shape (sites, chunks), learned with few chunks.
        changes: by module, for each site its dense update as factors.

    Returns:
        The importance by module, at least 0.

    Raises:
        ConfigError: the two have different modules, or different sites of one module.
    """
    if set(coefficients) != set(changes):
        raise ConfigError("changes", sorted(set(changes) ^ set(coefficients))[:3], "must be of the same modules")
    importance: dict[str, float] = {}
    for name, values in coefficients.items():
        if len(values) != len(changes[name]):
            raise ConfigError(f"changes.{name}", len(changes[name]), f"must be {len(values)}, one for each site")
        sizes = np.abs(values).mean(axis=1)
        importance[name] = sum(
            float(size) * frobenius_norm(change) * change.shape[0] * change.shape[1]
            for size, change in zip(sizes, changes[name], strict=True)
        )
    return importance


def frobenius_norm(matrix: Factored) -> float:
    """Compute the Frobenius norm of the product of two factors, without forming the product."""
    left, right = (np.asarray(np.linalg.qr(f, mode="r")) for f in (matrix.left, matrix.right.T))
    return float(np.linalg.norm(left @ right.T))


def chunk_counts(importance: Mapping[str, float], total: int) -> dict[str, int]:
    """Share a budget of chunks among modules: one for each module, the others by largest remainder.

    With ``rest = total - modules``, a module's quota is ``rest * importance / sum``. It gets the whole part of it, and
    what is left goes to the largest fractions, to the first module where they are equal. A more important module
    never gets less. All modules get equal shares if none is important.

    Args:
        importance: by module, finite and nonnegative.
        total: number of chunks in all.

    Returns:
        The number of chunks by module; they add up to ``total``.

    Raises:
        ConfigError: there are fewer chunks than modules, or an importance is negative or not finite.
    """
    for name, value in importance.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"importance.{name}", value, "must be a finite number >= 0")
    if total < len(importance):
        raise ConfigError("total", total, f"must be at least {len(importance)}, one for each module")
    if not importance:
        return {}
    top = max(importance.values())
    shares = [value / top if top else 1.0 for value in importance.values()]
    rest = total - len(importance)
    quotas = [rest * share / math.fsum(shares) for share in shares]
    counts = [int(quota) for quota in quotas]
    by_fraction = sorted(range(len(quotas)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_fraction[: rest - sum(counts)]:
        counts[i] += 1
    return {name: 1 + count for name, count in zip(importance, counts, strict=True)}
