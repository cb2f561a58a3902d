"""Moments of chosen entries of a matrix, whose positions are kept as int32."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.optim.base import State, check_matrix


def check_indexed(rule: str, name: str, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a parameter is a matrix whose positions fit."""
    check_matrix(rule, name, shape)
    if prod(shape) > 2**31 - 1:
        raise ConfigError(f"optimizer.{rule}", f"{name} of shape {list(shape)}", "must have fewer than 2^31 entries")


def moved(state: State, places: Any) -> State:
    """Moments at other places: those of entries that stay, and 0.

    Args:
        state: ``m``, ``v`` and ``places``, or empty.
        places: the new ones. Both are ascending.
    """
    import torch

    if "m" not in state:
        return {"places": places}
    before = state["places"]
    found = torch.searchsorted(before, places).clamp_(max=before.numel() - 1)
    stays = before[found] == places
    return {key: torch.where(stays, state[key][found], 0.0) for key in ("m", "v")} | {"places": places}


def masked(
    grad: Any, weight: Any, state: State, weight_decay: float, inner: Callable[[Any, State], tuple[Any, State]]
) -> tuple[Any, State]:
    """Run a rule on the entries at ``state["places"]`` of a matrix; the rest of the direction is 0.

    Args:
        grad: of the matrix.
        weight: the matrix; decays at the same entries.
        state: moments of the entries, and ``places``.
        weight_decay: of this step.
        inner: from the gradient's entries and the moments to a direction and new moments.
    """
    places = state["places"]
    wide = places.long()
    direction, kept = inner(grad.reshape(-1)[wide], state)
    if weight_decay:
        direction.add_(weight.reshape(-1)[wide], alpha=weight_decay)
    delta = grad.new_zeros(grad.numel())
    delta[wide] = direction
    return delta.view(grad.shape), kept | {"places": places}
