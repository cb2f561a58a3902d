"""Into a subspace of a matrix and back, and moments from one basis to the next."""

from __future__ import annotations

from typing import Any

from fedcompress.optim.base import State

CARRIES: tuple[str, ...] = ("reset", "keep", "project")


def larger_side(shape: tuple[int, ...]) -> str:
    """The side whose basis is the smaller: ``right`` for tall matrices, ``left`` for wide ones."""
    return "right" if shape[0] >= shape[1] else "left"


def to_low(matrix: Any, basis: Any, side: str) -> Any:
    """``G P`` or ``P^T G``."""
    return matrix @ basis if side == "right" else basis.T @ matrix


def to_full(low: Any, basis: Any, side: str) -> Any:
    """``R P^T`` or ``P R``."""
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
    turn = before.T @ basis
    squared = turn * turn
    first, second = state["m"], state["v"]
    if side == "right":
        return state | {"m": first @ turn, "v": second @ squared}
    return state | {"m": turn.T @ first, "v": squared.T @ second}
