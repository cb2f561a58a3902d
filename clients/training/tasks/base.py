"""The contract of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clients.data_sources import Row

IGNORED = -100  # label of a position without loss, as torch's cross_entropy has it


@dataclass(frozen=True)
class Example:
    """One tokenized row, or several packed: token ids, and a class or a label for each position."""

    where: str
    tokens: Sequence[int]
    labels: Sequence[int]
    predictions: int  # positions with a loss
    starts: tuple[int, ...] = ()  # of each row, where several are packed


@dataclass(frozen=True)
class Sums:
    """Of a batch, over what is predicted: correct ones, their loss in nats, their number.

    ``exact`` counts rows of which all is correct: those that greedy decoding answers word for word.
    """

    correct: Any
    loss: Any
    count: int
    exact: Any


class Task(Protocol):
    """One objective."""

    @property
    def columns(self) -> Sequence[Sequence[str]]:
        """Fields of a row: all of one of these."""
        ...

    @property
    def packs(self) -> int | None:
        """Most tokens of a block of packed examples; None where they cannot be packed."""
        ...

    def example(self, row: Row) -> Example:
        """Tokenize.

        Raises:
            ConfigError: the row lacks a field, or has it wrong; says where it is, not what is in it.
        """
        ...

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Padded tensors, int64, for ``measure``."""
        ...

    def measure(self, module: Any, batch: dict[str, Any]) -> Sums:
        """Run the model; the loss carries gradients."""
        ...
