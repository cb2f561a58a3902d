"""What a server optimizer is, and its state on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError, NonFiniteError, StateError
from fedcompress.types import Array, Layout, Tensors, from_bytes, to_bytes, zeros

Wide = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ServerOptimizerState:
    """Named float32 tensors of one layout, and counters: all that an optimizer remembers."""

    optimizer: str
    slots: Mapping[str, Tensors] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A line of JSON, then little-endian float32 of all slots, in order.

        Raises:
            NonFiniteError: a slot has overflowed.
        """
        for slot, tensors in self.slots.items():
            for name, value in tensors.items():
                if not np.isfinite(value).all():
                    where = f"server-optimizer: {self.optimizer}: {slot}: {name}"
                    raise NonFiniteError(f"{where}: contains NaN or infinity: the merged update is too large")
        head = {"optimizer": self.optimizer, "slots": list(self.slots), "counters": dict(self.counters)}
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + b"".join(map(to_bytes, self.slots.values()))

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> ServerOptimizerState:
        """Inverse of ``to_bytes``.

        Raises:
            StateError: not a state, or of another layout.
        """
        head, _, body = data.partition(b"\n")
        try:
            facts = json.loads(head)
            optimizer, slots, counters = facts["optimizer"], list(facts["slots"]), dict(facts["counters"])
        except (ValueError, TypeError, KeyError) as error:
            raise StateError(f"server-optimizer: its state cannot be read: {error}") from error
        size = 4 * layout.numel
        if len(body) != size * len(slots):
            raise StateError(f"server-optimizer: {len(body)} bytes: {len(slots)} slots need {size * len(slots)}")
        parts = {slot: from_bytes(body[i * size : (i + 1) * size], layout) for i, slot in enumerate(slots)}
        return cls(optimizer=optimizer, slots=parts, counters=counters)


class ServerOptimizer(Protocol):
    """A dataclass with a name."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def init(self, layout: Layout) -> ServerOptimizerState:
        """State before the first round."""
        ...

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """What to add to the published state, float32, of the shapes of ``step``, and the next state. Pure."""
        ...


def fresh(optimizer: str, layout: Layout, slots: Mapping[str, float]) -> ServerOptimizerState:
    """A state whose slots have one value each; a counter ``steps`` where there are slots."""
    made = {}
    for slot, value in slots.items():
        made[slot] = {name: tensor + np.float32(value) for name, tensor in zeros(layout).items()}
    return ServerOptimizerState(optimizer=optimizer, slots=made, counters={"steps": 0} if slots else {})


def advanced(state: ServerOptimizerState, slots: Mapping[str, Tensors]) -> ServerOptimizerState:
    """The state one step later."""
    counters = {**state.counters, "steps": state.counters["steps"] + 1}
    return ServerOptimizerState(optimizer=state.optimizer, slots=slots, counters=counters)


def narrow(values: Wide) -> Array:
    """Float32; too large is infinity, without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def check_range(optimizer: str, **values: float) -> None:
    """Raise ``ConfigError`` unless ``lr`` is at least 0, ``tau`` above 0, and all others from 0 to below 1."""
    for name, value in values.items():
        match name:
            case "lr":
                good, rule = value >= 0, "must be at least 0"
            case "tau":
                good, rule = value > 0, "must be above 0"
            case _:
                good, rule = 0 <= value < 1, "must be from 0 to below 1"
        if not good:
            raise ConfigError(f"server-optimizer.{optimizer}.{name}", value, rule)
