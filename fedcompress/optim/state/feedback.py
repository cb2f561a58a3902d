"""Error feedback: what a projection left out of a gradient is added to the next one."""

from __future__ import annotations

from math import prod
from typing import Any

from fedcompress.optim.base import STORES, ShardInfo, State
from fedcompress.optim.state.moment_storage import kind_for, pack, stored_bytes, unpack

FEEDBACKS: tuple[str, ...] = ("none", *STORES)


def with_error(grad: Any, state: State) -> Any:
    """The gradient and the kept error; the gradient itself where none is kept."""
    return grad + unpack(state["error"], signed=True) if "error" in state else grad


def kept_error(error: Any, feedback: str, part: ShardInfo, step: int) -> State:
    """The error as it is kept, in bits of its own beside those of the moments."""
    kind = kind_for(feedback, part.total)
    return {"error": pack(error, kind, signed=True, part=part, step=step, key="error")}


def error_bytes(feedback: str, shape: tuple[int, ...]) -> int:
    """Bytes of the error of a whole parameter."""
    return 0 if feedback == "none" else stored_bytes(feedback, prod(shape))
