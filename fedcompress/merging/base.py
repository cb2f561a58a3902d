"""What a merge rule is, and what it is given.

Elementwise rules get *blocks*: the same entries of all sites, as many as fit a cache, so that
memory does not grow with sites or tensors. What they need to know of whole updates, such as
a threshold or a norm, they find in a first pass. LoRA rules get *modules*: the factors of one
matrix from all sites.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Layout, TensorSpec

_FACTOR = re.compile(r"\.lora_(embedding_)?[AB](?=\.|$)")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Entries ``start`` to ``start + n`` of one flat tensor."""

    name: str
    start: int
    values: Array  # (sites, n): the updates
    weights: Floats  # (sites,), they add up to 1
    base: Array  # (n,): the published state that all sites started from
    round_: int = 1  # for rules that draw


class Rule(Protocol):
    """A dataclass with a name."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class Elementwise(Rule, Protocol):
    """Merges entry by entry."""

    def collect_statistics(self, updates: Updates, weights: Floats) -> Any:
        """What ``merge_block`` must know of whole updates, from a streaming pass; None is nothing."""
        ...

    def merge_block(self, block: Block, state: Any) -> NDArray[Any]:
        """Merged update of the block, shape (n,). Pure; blocks may come in any order and at the same time."""
        ...


@dataclass(frozen=True)
class Module:
    """Factors of one LoRA matrix ``B A``, float64: published, and as each site has them now."""

    name: str
    a0: Floats  # (rank, columns)
    b0: Floats  # (rows, rank)
    factors: Sequence[tuple[Floats, Floats]]  # A_i, B_i of each site
    weights: Floats  # (sites,), they add up to 1


@runtime_checkable
class Modular(Rule, Protocol):
    """Merges the two factors of a LoRA module together; all other tensors by their weighted mean."""

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """New A and B, of the shapes of the published ones."""
        ...


@dataclass(frozen=True)
class Pair:
    """The two factors of a LoRA module: ``b`` times ``a`` is its matrix."""

    name: str
    a: TensorSpec
    b: TensorSpec

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return self.b.shape[0], self.a.shape[1]


def pairs_of(layout: Layout) -> tuple[list[Pair], list[TensorSpec]]:
    """LoRA modules whose factors are matrices that multiply, and all other tensors."""
    factors: dict[str, dict[str, TensorSpec]] = {}
    for spec in layout.tensors:
        if spec.group in ("lora_a", "lora_b"):
            factors.setdefault(_FACTOR.sub("", spec.name), {})[spec.group] = spec
    pairs = [
        Pair(name, pair["lora_a"], pair["lora_b"])
        for name, pair in factors.items()
        if len(pair) == 2 and _multiply(pair["lora_b"].shape, pair["lora_a"].shape)
    ]
    paired = {spec.name for pair in pairs for spec in (pair.a, pair.b)}
    return pairs, [t for t in layout.tensors if t.name not in paired]


def _multiply(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) == 2 and left[1] == right[0]
