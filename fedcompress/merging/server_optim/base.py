"""The contract of a server optimizer, and its state in memory and on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from fedcompress.errors import ConfigError, NonFiniteError, StateError
from fedcompress.merging.base import Floats
from fedcompress.types import Array, Layout, Tensors, TensorSpec, from_bytes, to_bytes, zeros


@dataclass(frozen=True, kw_only=True)
class ServerOptimizerState:
    """Holds all that an optimizer remembers from round to round."""

    optimizer: str  # name of the optimizer that the state belongs to
    slots: Mapping[str, Tensors] = field(default_factory=dict)  # by slot, such as m: float32 tensors of the layout
    counters: Mapping[str, int] = field(default_factory=dict)  # steps: rounds so far, where there are slots

    def check_finite(self) -> None:
        """Raise ``NonFiniteError`` if a slot has overflowed, as squares of a huge update do."""
        for slot, tensors in self.slots.items():
            for name, value in tensors.items():
                if not np.isfinite(value).all():
                    where = f"server-optimizer: {self.optimizer}: {slot}: {name}"
                    raise NonFiniteError(f"{where}: contains NaN or infinity: the merged update is too large")

    def to_bytes(self) -> bytes:
        """Encode the state: a line of JSON, then the little-endian float32 values of all slots, in order.

        Raises:
            NonFiniteError: a slot has overflowed.
        """
        self.check_finite()
        head = {"optimizer": self.optimizer, "slots": list(self.slots), "counters": dict(self.counters)}
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + b"".join(map(to_bytes, self.slots.values()))

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> ServerOptimizerState:
        """Decode what ``to_bytes`` has encoded.

        Raises:
            StateError: the bytes are no state, or a state of another layout.
        """
        line, _, body = data.partition(b"\n")
        try:
            head = json.loads(line)
            optimizer = head["optimizer"]
            slots = list(head["slots"])
            counters = dict(head["counters"])
        except (ValueError, TypeError, KeyError) as error:
            raise StateError(f"server-optimizer: its state cannot be read: {error}") from error
        size = 4 * layout.numel
        if len(body) != size * len(slots):
            raise StateError(f"server-optimizer: {len(body)} bytes: {len(slots)} slots need {size * len(slots)}")
        tensors = {slot: from_bytes(body[i * size : (i + 1) * size], layout) for i, slot in enumerate(slots)}
        return cls(optimizer=optimizer, slots=tensors, counters=counters)


class ServerOptimizer(Protocol):
    """A server optimizer is a frozen dataclass with a name; its fields are the parameters that a user can set."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def init(self, layout: Layout) -> ServerOptimizerState:
        """Make the state before the first round."""
        ...

    def update(self, step: Mapping[str, Array], state: ServerOptimizerState) -> tuple[Tensors, ServerOptimizerState]:
        """Make a step of the merged update of a round. This is a pure function.

        Args:
            step: the merged update, by tensor, float32.
            state: what ``init``, or the last ``update``, has returned.

        Returns:
            What to add to the published state, float32, of the shapes of ``step``, and the next state.
        """
        ...


def initial_state(optimizer: str, layout: Layout, slots: Mapping[str, float]) -> ServerOptimizerState:
    """Make a state whose slots are filled with one value each.

    Args:
        optimizer: name of the optimizer.
        layout: layout of the published state.
        slots: by name of the slot, the value of all its entries.

    Returns:
        The state. It has a counter ``steps``, at 0, if there are slots.
    """
    tensors = {
        slot: {name: zero + np.float32(value) for name, zero in zeros(layout).items()} for slot, value in slots.items()
    }
    return ServerOptimizerState(optimizer=optimizer, slots=tensors, counters={"steps": 0} if slots else {})


def next_state(state: ServerOptimizerState, slots: Mapping[str, Tensors]) -> ServerOptimizerState:
    """Return the state one step later, with new slots and the counter ``steps`` increased by 1."""
    counters = {**state.counters, "steps": state.counters["steps"] + 1}
    return ServerOptimizerState(optimizer=state.optimizer, slots=slots, counters=counters)


def to_float32(values: Floats) -> Array:
    """Round float64 values to float32; what is too large becomes infinity, without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def check_range(optimizer: str, **values: float) -> None:
    """Raise ``ConfigError`` unless parameters are in their range.

    Args:
        optimizer: name of the optimizer, for the message.
        values: by name of the parameter; ``lr`` must be at least 0, ``tau`` above 0, all others from 0 to below 1.
    """
    for name, value in values.items():
        match name:
            case "lr":
                is_good = value >= 0
                rule = "must be at least 0"
            case "tau":
                is_good = value > 0
                rule = "must be above 0"
            case _:
                is_good = 0 <= value < 1
                rule = "must be from 0 to below 1"
        if not is_good:
            raise ConfigError(f"server-optimizer.{optimizer}.{name}", value, rule)


def step_arrays(optimizer: ServerOptimizer, merged: Sequence[ArrayLike]) -> Array:
    """Run an optimizer over the merged updates of consecutive rounds, to try it or to show what it does.

    Args:
        optimizer: the optimizer.
        merged: one small array for each round, all of one shape (n,).

    Returns:
        The step of each round, shape (rounds, n), float32.
    """
    arrays = [np.array(update, np.float32) for update in merged]
    state = optimizer.init(Layout((TensorSpec(name="x", shape=arrays[0].shape),)))
    steps = []
    for array in arrays:
        step, state = optimizer.update({"x": array}, state)
        steps.append(step["x"])
    return np.stack(steps)
