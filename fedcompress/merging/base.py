"""The contract of a merge rule: what a rule is, and what it is given.

There are two kinds of rule. An *elementwise* rule gets blocks: the same entries of all sites, as many as fit a cache,
so that memory does not grow with the number of sites or with the size of a tensor. What it must know of whole
updates, such as a threshold or a norm, it collects in a first pass over the data; this is its *state*. A *modular*
rule gets modules: the two LoRA factors of one matrix from all sites.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.updates import Updates
from fedcompress.types import Array, Layout, TensorSpec

_FACTOR = re.compile(r"\.lora_(embedding_)?[AB](?=\.|$)")
Floats = NDArray[np.float64]
State = TypeVar("State")  # what a rule collects of whole updates; each rule documents its own type


@dataclass(frozen=True)
class Block:
    """A block holds entries ``start`` to ``start + n`` of one flat tensor, from all sites."""

    name: str  # of the tensor
    start: int  # index of the first entry in the flat tensor
    values: Array  # (sites, n), float32: the updates
    weights: Floats  # (sites,), float64: weights of the sites, which add up to 1
    base: Array  # (n,), float32: the published state that all sites started from
    round_: int = 1  # number of the round, for rules that draw random masks


class MergeRule(Protocol):
    """A rule is a frozen dataclass with a name; its fields are the parameters that a user can set.

    Rules inherit from this class, and override the attributes below where they differ.

    Attributes:
        name: name in the table ``RULES`` and in ``name(key=value,...)``.
        needs_rounds: True if the rule does different things in different rounds, so that it has no meaning for a
            single merge of folders.
        requires_frozen_a: True if the rule is exact only while all sites keep LoRA's A as it was published.
    """

    name: ClassVar[str]
    needs_rounds: ClassVar[bool] = False
    requires_frozen_a: ClassVar[bool] = False
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def min_updates(self) -> int:
        """Return the smallest number of updates that the rule can merge."""
        return 1


class Elementwise(MergeRule, Protocol[State]):
    """An elementwise rule merges entry by entry, given a state that it has collected from whole updates."""

    def collect_statistics(self, updates: Updates, weights: Floats) -> State:
        """Collect what ``merge_block`` must know of whole updates, in one or more streaming passes.

        Args:
            updates: the updates of all sites.
            weights: shape (sites,), float64; they add up to 1.

        Returns:
            The state. Each rule has a frozen dataclass for it, whose fields say shape and meaning; None if the rule
            needs nothing.
        """
        ...

    def merge_block(self, block: Block, state: State) -> Floats | Array:
        """Merge one block.

        This is a pure function. The engine calls it for the blocks in any order, and from several threads.

        Args:
            block: the same entries of all sites.
            state: what ``collect_statistics`` has returned.

        Returns:
            The merged update of the block, shape (n,).
        """
        ...


class Stateless(Elementwise[None], Protocol):
    """A stateless rule is an elementwise rule that needs nothing of whole updates: its state is None."""

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Return None, without reading the updates."""
        return None


@dataclass(frozen=True)
class Module:
    """A module holds the factors of one LoRA matrix ``B A`` in float64: as published, and as each site has them now."""

    name: str
    a0: Floats  # (rank, columns): A as published
    b0: Floats  # (rows, rank): B as published
    factors: Sequence[tuple[Floats, Floats]]  # for each site its A_i and B_i, of these shapes
    weights: Floats  # (sites,): weights of the sites, which add up to 1


@runtime_checkable
class Modular(MergeRule, Protocol):
    """A modular rule merges the two factors of a LoRA module together; other tensors get their weighted mean."""

    def pair(self, module: Module, round_: int) -> tuple[Floats, Floats]:
        """Merge one module.

        Args:
            module: the factors of all sites. They are not changed.
            round_: number of the round, from 1.

        Returns:
            The new A and B, float64, of the shapes of the published ones. They share no memory with the module's.
        """
        ...


# A rule that was parsed from text: the type of its state is not known when types are checked.
AnyRule = Elementwise[Any] | Modular


@dataclass(frozen=True)
class Pair:
    """A pair names the two factors of a LoRA module: its matrix is ``b`` times ``a``."""

    name: str  # of the module: the factors' names without ``.lora_A`` and ``.lora_B``
    a: TensorSpec  # (rank, columns)
    b: TensorSpec  # (rows, rank)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the product, (rows, columns)."""
        return self.b.shape[0], self.a.shape[1]


def pairs_of(layout: Layout) -> tuple[list[Pair], list[TensorSpec]]:
    """Find the LoRA modules of a layout.

    Args:
        layout: a layout whose tensors have groups.

    Returns:
        The modules whose two factors are matrices that can be multiplied, and all tensors that belong to none of
        them, each in layout order.
    """
    factors: dict[str, dict[str, TensorSpec]] = {}
    for spec in layout.tensors:
        if spec.group in ("lora_a", "lora_b"):
            factors.setdefault(_FACTOR.sub("", spec.name), {})[spec.group] = spec
    pairs = [
        Pair(name, pair["lora_a"], pair["lora_b"])
        for name, pair in factors.items()
        if len(pair) == 2 and _can_multiply(pair["lora_b"].shape, pair["lora_a"].shape)
    ]
    paired = {spec.name for pair in pairs for spec in (pair.a, pair.b)}
    return pairs, [t for t in layout.tensors if t.name not in paired]


def _can_multiply(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) == 2 and left[1] == right[0]
