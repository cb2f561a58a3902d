"""Into a subspace of a matrix and back, and moments from one basis to the next."""

from __future__ import annotations

from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.optim.base import State, check_matrix

TINY = 1e-8
CARRIES: tuple[str, ...] = ("reset", "keep", "project")


def check_rank(rule: str, rank: int, name: str, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a parameter is a matrix whose smaller side is at least the rank."""
    check_matrix(rule, name, shape)
    if rank > min(shape):
        raise ConfigError(f"optimizer.{rule}.rank", rank, f"must be at most {min(shape)}, the smaller side of {name}")


def larger_side(shape: tuple[int, ...]) -> str:
    """The side whose basis is the smaller: ``right`` for tall matrices, ``left`` for wide ones."""
    return "right" if shape[0] >= shape[1] else "left"


def to_low(matrix: Any, basis: Any, side: str) -> Any:
    """``G P`` or ``P^T G``, float32; the product is made in the dtype of the basis."""
    matrix = matrix.to(basis.dtype)
    return (matrix @ basis if side == "right" else basis.T @ matrix).float()


def to_full(low: Any, basis: Any, side: str) -> Any:
    """``R P^T`` or ``P R``, in the dtype of the basis."""
    low = low.to(basis.dtype)
    return low @ basis.T if side == "right" else basis @ low


def carried(state: State, before: Any, basis: Any, side: str, how: str) -> State:
    """State under a new basis.

    ``project`` turns the first moment by ``R = before^T basis``, and the second as a variance whose
    coordinates are taken for independent: ``R * R`` (LDAdam, Robert et al. 2024, arXiv:2410.16103,
    section 3.1, without the term of the mean).
    """
    if before is None or how == "reset":
        return {}
    if how == "keep":
        return state
    turn = before.float().T @ basis
    squared = turn * turn
    first, second = state["m"], state["v"]
    if side == "right":
        return state | {"m": first @ turn, "v": second @ squared}
    return state | {"m": turn.T @ first, "v": squared.T @ second}


def channel_scale(inner: Any, low: Any, side: str) -> Any:
    """``|N| / |R|`` of each row (``right``) or column (``left``), as a column or a row."""
    dim = 1 if side == "right" else 0
    return inner.norm(dim=dim, keepdim=True) / low.norm(dim=dim, keepdim=True).add_(TINY)


def limited(matrix: Any, last: Any, growth: float) -> tuple[Any, Any]:
    """A matrix whose norm is at most ``growth`` times the last one, and its norm.

    The norm-growth limiter of Fira (Chen et al. 2024, arXiv:2410.01623). The released code adds 1e-8 to the
    last norm, and a gradient that is 0 once, as that of LoRA's A at the first step, then holds the norm
    near 1e-8 for thousands of steps; here a norm of 0 limits nothing.

    Args:
        matrix: float32; it is written to.
        last: the norm of the last step, a 0-d tensor; None at first.
        growth: at least 1.
    """
    import torch

    norm = matrix.norm()
    if last is None:
        return matrix, norm
    over = torch.where(last > 0, (norm / (growth * last)).clamp_(min=1), 1)
    return matrix.div_(over), norm / over
