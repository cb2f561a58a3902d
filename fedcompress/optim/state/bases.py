"""Orthonormal bases of the subspace in which a matrix rule keeps its moments.

Every basis is a matrix of columns: for a gradient of shape (m, n) and a side of length d, which is n for ``right``
and m for ``left``, it has shape (d, rank) and spans directions of that side.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

LOG = logging.getLogger("fedcompress.optim")
BASES: tuple[str, ...] = ("svd", "randomized", "power", "random", "dct")
OVERSAMPLING = 16  # directions that the range finder draws beyond the rank


def compute_basis(
    grad: Tensor, rank: int, kind: str, *, side: str, before: Tensor | None = None, generator: Generator | None = None
) -> Tensor:
    """Compute an orthonormal basis of the gradient's row space (``right``) or column space (``left``).

    Args:
        grad: float32, shape (m, n).
        rank: number of directions, at most the smaller of m and n.
        kind: how the basis is found. ``svd`` takes the exact leading singular vectors. ``randomized`` is a range
            finder with one power iteration (Halko et al. 2011, arXiv:0909.4061, algorithms 4.3 and 5.1).
            ``power`` is one block power iteration from ``before``, and the same as ``randomized`` without it.
            ``random`` is uniform on the Stiefel manifold. ``dct`` takes the columns of the cosine transform that
            hold most of the gradient by l1 norm (arXiv:2505.17967, section 3).
        side: ``right`` or ``left``.
        before: the last basis, shape (d, rank). It stays, with a warning, where an exact SVD fails.
        generator: source of what is drawn, on the CPU.

    Returns:
        Float32, shape (d, rank), on the gradient's device.
    """
    import torch

    matrix = grad if side == "right" else grad.T
    match kind:
        case "svd":
            return _compute_singular_vectors(grad, rank, side, before)
        case "power" if before is not None and before.shape[1] == rank:
            return torch.linalg.qr(matrix.T @ (matrix @ before))[0]
        case "randomized" | "power":
            return _find_range(matrix, rank, generator)
        case "random":
            gaussian = torch.randn(matrix.shape[1], rank, generator=generator).to(grad)
            return torch.linalg.qr(gaussian)[0]
        case _:
            cosines = build_dct_matrix(matrix.shape[1], grad.device)
            return cosines[:, select_dct_columns(matrix @ cosines, rank)]


def select_dct_columns(transformed: Tensor, rank: int) -> Tensor:
    """Return the numbers of the ``rank`` columns with the largest l1 norm, ascending, as int64 of shape (rank,)."""
    return transformed.abs().sum(0).topk(rank).indices.sort().values


@cache
def build_dct_matrix(size: int, device: Any) -> Tensor:
    """Build the orthonormal DCT-II as columns: float32, shape (size, size), one for all parameters of a size."""
    import torch

    grid = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (grid[:, None] + 0.5) * grid[None]) * (2 / size) ** 0.5
    matrix[:, 0] *= 0.5**0.5
    return matrix.float().to(device)


def _compute_singular_vectors(grad: Tensor, rank: int, side: str, before: Tensor | None) -> Tensor:
    """Compute leading singular vectors of the gradient as it lies, never of its transpose.

    The signs of singular vectors depend on how the matrix lies, so both sides then agree on them.
    """
    import torch

    try:
        left, _, right = torch.linalg.svd(grad, full_matrices=False)
        return (right[:rank].T if side == "right" else left[:, :rank]).contiguous()
    except torch.linalg.LinAlgError as error:
        if before is None:
            LOG.warning("the SVD of a gradient of shape %s failed, the range finder takes over: %s", grad.shape, error)
            matrix = grad if side == "right" else grad.T
            return _find_range(matrix, rank, torch.Generator().manual_seed(0))
        LOG.warning("the SVD of a gradient of shape %s failed, the old basis stays: %s", grad.shape, error)
        return before


def _find_range(matrix: Tensor, rank: int, generator: Generator | None) -> Tensor:
    """Run the range finder with one power iteration, and return the leading directions of the range it finds."""
    import torch

    width = min(rank + OVERSAMPLING, *matrix.shape)
    gaussian = torch.randn(matrix.shape[0], width, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix.T @ gaussian)[0]
    basis = torch.linalg.qr(matrix.T @ (matrix @ basis))[0]
    if width == rank:
        return basis
    values, vectors = torch.linalg.eigh((matrix @ basis).T @ (matrix @ basis))
    return basis @ vectors[:, values.argsort(descending=True)[:rank]]
