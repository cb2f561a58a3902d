"""What a merge rule is, and the units that it works on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fedcompress.types import Array, Layout, Tensors, TensorSpec

_FACTOR = re.compile(r"\.lora_(embedding_)?[AB](?=\.|$)")


@dataclass(frozen=True)
class Unit:
    """Tensors that are merged together.

    ``a`` and ``b`` are set for a LoRA module, ``tensors`` lists all specs of the unit.
    """

    tensors: tuple[TensorSpec, ...]
    a: TensorSpec | None = None
    b: TensorSpec | None = None


class Rule(Protocol):
    """``init``, then ``fold`` once for each site in a fixed order, then ``finish``.

    The weights of all folds add up to 1. State is the rule's own; nothing is hidden.
    """

    name: ClassVar[str]

    def __init__(self, **kwargs: Any) -> None: ...

    def init(self, unit: Unit, base: Mapping[str, Array]) -> Any:
        """State for a unit, given the published values that all sites started from."""
        ...

    def fold(self, state: Any, weight: float, delta: Mapping[str, Array]) -> Any:
        """State after one more site's update of this unit."""
        ...

    def finish(self, state: Any) -> Tensors:
        """Merged update of the unit, float32."""
        ...


def _multiply(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) == 2 and left[1] == right[0]


def units_of(layout: Layout) -> list[Unit]:
    """Pairs the two factors of each LoRA module, if they are matrices that multiply; all other tensors stand alone."""
    factors: dict[str, dict[str, TensorSpec]] = {}
    for spec in layout.tensors:
        if spec.group in ("lora_a", "lora_b"):
            factors.setdefault(_FACTOR.sub("", spec.name), {})[spec.group] = spec
    units = []
    for spec in layout.tensors:
        pair = factors.get(_FACTOR.sub("", spec.name), {}) if spec.group in ("lora_a", "lora_b") else {}
        if len(pair) == 2 and _multiply(pair["lora_b"].shape, pair["lora_a"].shape):
            if spec.group == "lora_a":
                units.append(Unit((pair["lora_a"], pair["lora_b"]), a=pair["lora_a"], b=pair["lora_b"]))
        else:
            units.append(Unit((spec,)))
    return units
