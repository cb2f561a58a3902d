"""Moments of chosen entries of a matrix, whose places are stored as int32."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

from fedcompress.errors import ConfigError
from fedcompress.optim.base import check_matrix
from fedcompress.optim.state.adam_moments import AdamMoments

if TYPE_CHECKING:
    from torch import Tensor


class SparseMoments(AdamMoments, total=False):
    """Sparse moments ``m`` and ``v`` have shape (k,): one number for each of the k chosen entries."""

    places: Tensor  # places of the entries in the flattened matrix, ascending; int32, shape (k,)


def check_indexable(rule: str, name: str, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a parameter is a matrix whose places fit into int32.

    Args:
        rule: name of the rule, for the error.
        name: name of the parameter, for the error.
        shape: shape of the whole parameter.

    Raises:
        ConfigError: the parameter is no matrix, or has 2^31 entries or more.
    """
    check_matrix(rule, name, shape)
    if prod(shape) > 2**31 - 1:
        raise ConfigError(f"optimizer.{rule}", f"{name} of shape {list(shape)}", "must have fewer than 2^31 entries")


def move_moments(state: SparseMoments, places: Tensor) -> SparseMoments:
    """Return the moments at new places: entries that stay chosen keep theirs, others begin at 0.

    Args:
        state: moments at the old places, or an empty state.
        places: the new places, ascending; int32.

    Returns:
        The new places and, unless the state was empty, the moments there.
    """
    import torch

    if "m" not in state:
        return {"places": places}
    before = state["places"]
    matches = torch.searchsorted(before, places).clamp_(max=before.numel() - 1)
    stays = before[matches] == places
    return {
        "m": torch.where(stays, state["m"][matches], 0.0),
        "v": torch.where(stays, state["v"][matches], 0.0),
        "places": places,
    }


def step_entries(
    grad: Tensor,
    weight: Tensor,
    state: SparseMoments,
    weight_decay: float,
    inner: Callable[[Tensor, AdamMoments], tuple[Tensor, AdamMoments]],
) -> tuple[Tensor, SparseMoments]:
    """Run an inner rule on the entries at ``state["places"]`` of a matrix; all others get a direction of 0.

    Args:
        grad: gradient of the matrix, float32, shape (m, n).
        weight: the matrix, in the same shape; it decays at the same entries.
        state: places of the entries, and their moments.
        weight_decay: weight decay of this step.
        inner: from the gradient of the entries, shape (k,), and their moments to a direction, which is written to,
            and new moments.

    Returns:
        The direction of the matrix, shape (m, n), and the new state.
    """
    places = state["places"]
    chosen = places.long()
    direction, moments = inner(grad.reshape(-1)[chosen], state)
    if weight_decay:
        direction.add_(weight.reshape(-1)[chosen], alpha=weight_decay)
    delta = grad.new_zeros(grad.numel())
    delta[chosen] = direction
    return delta.view(grad.shape), {**moments, "places": places}
