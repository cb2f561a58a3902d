"""Error feedback adds what a projection left out of a gradient to the next gradient."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, TypedDict

from fedcompress.optim.base import STORES, ShardInfo
from fedcompress.optim.state.moment_storage import choose_store, count_stored_bytes, pack_moment, unpack_moment

if TYPE_CHECKING:
    from torch import Tensor

FEEDBACKS: tuple[str, ...] = ("none", *STORES)


class ErrorState(TypedDict, total=False):
    """The error is packed by the rule itself, in bits that may be others than those of the moments."""

    error: Any  # packed as by ``pack_moment``; unpacked float32, in the shape of the gradient; absent if none is kept


def add_error(grad: Tensor, state: ErrorState) -> Tensor:
    """Return the sum of the gradient and the stored error, or the gradient itself where no error is stored."""
    return grad + unpack_moment(state["error"], signed=True) if "error" in state else grad


def pack_error(error: Tensor, feedback: str, shard: ShardInfo, step: int) -> Any:
    """Pack an error for the state.

    Args:
        error: float32, in the shape of the gradient.
        feedback: how it is stored, one of ``STORES``.
        shard: the parameter, from which the noise of bfloat16 is drawn.
        step: number of the step, for that noise.

    Returns:
        The value for the key ``error`` of the state, as ``pack_moment`` returns it.
    """
    store = choose_store(feedback, shard.total)
    return pack_moment(error, store, signed=True, shard=shard, step=step, key="error")


def count_error_bytes(feedback: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that the stored error of a whole parameter takes."""
    return 0 if feedback == "none" else count_stored_bytes(feedback, prod(shape))
