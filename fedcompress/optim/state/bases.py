"""Orthonormal bases of the subspace that a matrix rule keeps moments in.

All return columns: for a gradient of shape (m, n) and a side of size d, a matrix of shape
(d, rank) that spans directions of that side.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

LOG = logging.getLogger("fedcompress.optim")
BASES: tuple[str, ...] = ("svd", "randomized", "power", "random", "dct")
OVERSAMPLING = 16


def basis_of(grad: Any, rank: int, kind: str, *, side: str, before: Any = None, generator: Any = None) -> Any:
    """Basis of the rows' space (``right``: d = n) or the columns' (``left``: d = m).

    Args:
        grad: float32, shape (m, n).
        rank: at most the smaller of m and n.
        kind: ``svd`` is exact; ``randomized`` is a range finder with one power iteration (Halko et
            al. 2011, arXiv:0909.4061, algorithms 4.3 and 5.1); ``power`` is one block power
            iteration from ``before``, or as ``randomized`` at first; ``random`` is uniform on the
            Stiefel manifold; ``dct`` the columns of the cosine transform that keep most, by l1
            norm (arXiv:2505.17967, section 3).
        side: ``right`` or ``left``.
        before: the last basis; kept, with a warning, where an exact SVD fails.
        generator: of what is drawn, on the CPU.
    """
    import torch

    matrix = grad if side == "right" else grad.T
    match kind:
        case "svd":
            return _singular(grad, rank, side, before)
        case "power" if before is not None and before.shape[1] == rank:
            return torch.linalg.qr(matrix.T @ (matrix @ before))[0]
        case "randomized" | "power":
            return _randomized(matrix, rank, generator)
        case "random":
            drawn = torch.randn(matrix.shape[1], rank, generator=generator).to(grad)
            return torch.linalg.qr(drawn)[0]
        case _:
            cosine = dct_matrix(matrix.shape[1], grad.device)
            return cosine[:, dct_columns(matrix @ cosine, rank)]


def dct_columns(transformed: Any, rank: int) -> Any:
    """Which cosines hold most of a transformed gradient, by l1 norm; ascending."""
    return transformed.abs().sum(0).topk(rank).indices.sort().values


@cache
def dct_matrix(size: int, device: Any) -> Any:
    """Orthonormal DCT-II as columns, shape (size, size); one for all parameters of a size."""
    import torch

    grid = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (grid[:, None] + 0.5) * grid[None]) * (2 / size) ** 0.5
    matrix[:, 0] *= 0.5**0.5
    return matrix.float().to(device)


def _singular(grad: Any, rank: int, side: str, before: Any) -> Any:
    """Of the gradient as it lies: signs of singular vectors depend on that, and both sides then agree."""
    import torch

    try:
        left, _, right = torch.linalg.svd(grad, full_matrices=False)
        return (right[:rank].T if side == "right" else left[:, :rank]).contiguous()
    except torch.linalg.LinAlgError as error:
        if before is None:
            LOG.warning("the SVD of a gradient of shape %s failed, the range finder takes over: %s", grad.shape, error)
            matrix = grad if side == "right" else grad.T
            return _randomized(matrix, rank, torch.Generator().manual_seed(0))
        LOG.warning("the SVD of a gradient of shape %s failed, the old basis stays: %s", grad.shape, error)
        return before


def _randomized(matrix: Any, rank: int, generator: Any) -> Any:
    """Range finder with one power iteration, and the leading directions of what it found."""
    import torch

    width = min(rank + OVERSAMPLING, *matrix.shape)
    drawn = torch.randn(matrix.shape[0], width, generator=generator).to(matrix)
    found = torch.linalg.qr(matrix.T @ drawn)[0]
    found = torch.linalg.qr(matrix.T @ (matrix @ found))[0]
    if width == rank:
        return found
    values, vectors = torch.linalg.eigh((matrix @ found).T @ (matrix @ found))
    return found @ vectors[:, values.argsort(descending=True)[:rank]]
