"""Projection of a matrix into a subspace and back, and what becomes of moments when the basis changes.

With G of shape (m, n) and a basis P of ``rank`` columns, the side ``right`` projects the rows, ``G P`` of shape
(m, rank), and ``left`` projects the columns, ``P^T G`` of shape (rank, n).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcompress.optim.state.adam_moments import AgedMoments

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-8  # added to norms that are divided by
CARRIES: tuple[str, ...] = ("reset", "keep", "project")


def choose_side(shape: tuple[int, ...]) -> str:
    """Return the side whose basis is the smaller: ``right`` for tall and square matrices, ``left`` for wide ones."""
    return "right" if shape[0] >= shape[1] else "left"


def project(matrix: Tensor, basis: Tensor, side: str) -> Tensor:
    """Project a matrix into the subspace: ``G P`` (``right``) or ``P^T G`` (``left``).

    Args:
        matrix: G, shape (m, n).
        basis: P, orthonormal columns, shape (n, rank) or (m, rank). The product is made in its dtype.
        side: ``right`` or ``left``.

    Returns:
        Float32, shape (m, rank) or (rank, n).
    """
    matrix = matrix.to(basis.dtype)
    return (matrix @ basis if side == "right" else basis.T @ matrix).float()


def project_back(low: Tensor, basis: Tensor, side: str) -> Tensor:
    """Take a matrix from the subspace back to full size: ``R P^T`` (``right``) or ``P R`` (``left``).

    Args:
        low: R, shape (m, rank) or (rank, n).
        basis: P, orthonormal columns, shape (n, rank) or (m, rank).
        side: ``right`` or ``left``.

    Returns:
        Shape (m, n), in the dtype of the basis.
    """
    low = low.to(basis.dtype)
    return low @ basis.T if side == "right" else basis @ low


def carry_moments(state: AgedMoments, before: Tensor | None, basis: Tensor, side: str, carry: str) -> AgedMoments:
    """Return the moments that go on under a new basis.

    ``project`` turns the first moment by ``R = before^T basis``, and the second one by ``R * R``, as a variance
    whose coordinates are taken for independent (LDAdam, Robert et al. 2024, arXiv:2410.16103, section 3.1, without
    the term of the mean).

    Args:
        state: moments under the old basis.
        before: the old basis, shape (d, rank); None if there was none.
        basis: the new basis, float32, shape (d, rank).
        side: ``right`` or ``left``.
        carry: ``reset`` drops the moments and their age, ``keep`` leaves their numbers as they are, ``project``
            turns them.

    Returns:
        The new moments, or an empty state if they begin anew.
    """
    if before is None or carry == "reset":
        return {}
    if carry == "keep":
        return state
    turn = before.float().T @ basis
    squared = turn * turn
    if side == "right":
        return {**state, "m": state["m"] @ turn, "v": state["v"] @ squared}
    return {**state, "m": turn.T @ state["m"], "v": squared.T @ state["v"]}


def compute_channel_scale(inner: Tensor, low: Tensor, side: str) -> Tensor:
    """Compute the scale ``|N| / |R|`` that Adam gives to each channel of a projected gradient.

    Args:
        inner: N, Adam's direction in the subspace, shape (m, rank) or (rank, n).
        low: R, the projected gradient, in the same shape.
        side: ``right`` has one channel a row, ``left`` one a column.

    Returns:
        Shape (m, 1) for ``right``, (1, n) for ``left``.
    """
    dim = 1 if side == "right" else 0
    return inner.norm(dim=dim, keepdim=True) / low.norm(dim=dim, keepdim=True).add_(TINY)


def limit_growth(matrix: Tensor, last: Tensor | None, growth: float) -> tuple[Tensor, Tensor]:
    """Scale a matrix down until its norm is at most ``growth`` times the last one.

    This is the norm-growth limiter of Fira (Chen et al. 2024, arXiv:2410.01623). The released code adds 1e-8 to the
    last norm. A gradient that is 0 once, as that of LoRA's A at the first step, then holds the norm near 1e-8 for
    thousands of steps; here the last norm that is not 0 limits the next one, and none if there was none.

    Args:
        matrix: float32; it is written to.
        last: last norm that was not 0, or 0, a 0-d tensor; None at the first step, which is not limited.
        growth: largest growth of the norm from one step to the next; at least 1.

    Returns:
        The matrix and the norm to compare the next one with, a 0-d tensor.
    """
    import torch

    norm = matrix.norm()
    if last is None:
        return matrix, norm
    over = torch.where(last > 0, (norm / (growth * last)).clamp_(min=1), 1)
    limited = norm / over
    return matrix.div_(over), torch.where(limited > 0, limited, last)
