"""How many coefficients each module gets: more where more is at stake."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.data_driven.factored import Factored


def importance_of(coefficients: Mapping[str, Floats], changes: Mapping[str, list[Factored]]) -> dict[str, float]:
    """``sum_i mean|c_im| * |dW_im| * rows * columns`` of each module m.

    Expert Merging++ (Zhang et al. 2025, arXiv:2509.25712, importance-guided chunking) multiplies learned
    coefficients, norm of the update and number of parameters; its released code takes the counts by hand. How these
    are joined over sites and chunks is ours: a sum over sites, the mean over chunks. The norm is Frobenius', of the
    product.

    Args:
        coefficients: by module, (sites, chunks), learned with few chunks.
        changes: by module, for each site its dense update as factors.

    Raises:
        ConfigError: the modules differ, or the sites of one.
    """
    if set(coefficients) != set(changes):
        raise ConfigError("changes", sorted(set(changes) ^ set(coefficients))[:3], "must be of the same modules")
    out = {}
    for name, own in coefficients.items():
        if len(own) != len(changes[name]):
            raise ConfigError(f"changes.{name}", len(changes[name]), f"must be {len(own)}, one for each site")
        sizes = np.abs(own).mean(axis=1)
        out[name] = sum(
            float(c) * frobenius(d) * d.shape[0] * d.shape[1] for c, d in zip(sizes, changes[name], strict=True)
        )
    return out


def frobenius(matrix: Factored) -> float:
    """Norm of the product of the factors, without the product."""
    left, right = (np.asarray(np.linalg.qr(f, mode="r")) for f in (matrix.left, matrix.right.T))
    return float(np.linalg.norm(left @ right.T))


def chunk_counts(importance: Mapping[str, float], total: int) -> dict[str, int]:
    """Share a budget of chunks among modules: one for each, the others by largest remainder.

    With ``rest = total - modules``, a module's quota is ``rest * importance / sum``; it gets the whole part, and
    what is left goes to the largest fractions, to the first module where they are equal. A more important module
    never gets less. All equal if no module is important.

    Args:
        importance: by module, finite and nonnegative.
        total: chunks in all.

    Raises:
        ConfigError: less chunks than modules, or an importance that is negative or not finite.
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
    order = sorted(range(len(quotas)), key=lambda i: (counts[i] - quotas[i], i))
    for place in order[: rest - sum(counts)]:
        counts[place] += 1
    return {name: 1 + count for name, count in zip(importance, counts, strict=True)}
