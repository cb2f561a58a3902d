"""The contract of a task, and what goes through it: ``Row -> Example -> batch -> Sums``.

1. ``Task.example`` tokenizes a row of the site's data. Examples are kept from round to round.
2. ``Task.batch`` pads some examples to one dict of int64 tensors on the CPU; n is the number of examples, and
   length is that of the longest of them.
3. ``Task.measure`` runs the model on a batch and returns sums over what it predicts, not means: the trainer divides by
   the number of predictions of the whole batch, over all micro-batches and ranks, so that the loss does not depend on
   how a batch is split.

A *prediction* is whatever has a loss: the class of a text, or one token of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from clients.data_sources import Row

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # label of a position without loss, as torch's cross_entropy has it


@dataclass(frozen=True)
class Example:
    """Holds one tokenized row, or several that are packed into one block.

    Attributes:
        where: where the row is, for messages: ``file:line``.
        tokens: token ids.
        labels: one class; or a label for each token of ``tokens`` (causal) or of the completion (seq2seq), which is
            ``IGNORED`` where there is no loss.
        predictions: how many positions have a loss.
        starts: position of the first token of each row, where several are packed; empty for one row.
    """

    where: str
    tokens: Sequence[int]
    labels: Sequence[int]
    predictions: int
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchSums:
    """Holds sums over the predictions of a batch; tensors are scalars on the model's device.

    Attributes:
        correct: how many predictions are right, int64.
        loss: the sum of their cross entropies in nats, float32; it carries gradients.
        count: how many there are.
        exact: how many rows are right in every prediction, int64: those that greedy decoding answers word for word.
    """

    correct: Tensor
    loss: Tensor
    count: int
    exact: Tensor


class Task(Protocol):
    """Turns rows into tokens, batches and sums for one objective."""

    @property
    def columns(self) -> Sequence[Sequence[str]]:
        """Return the fields that a row must have: all of one of these."""
        ...

    @property
    def packs(self) -> int | None:
        """Return the most tokens of a block of packed examples; None where they cannot be packed."""
        ...

    def example(self, row: Row) -> Example:
        """Tokenize a row.

        Raises:
            ConfigError: the row lacks a field, or has it wrong; says where it is, not what is in it.
        """
        ...

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pad examples to the tensors that ``measure`` reads, int64, on the CPU."""
        ...

    def measure(self, module: Any, batch: dict[str, Tensor]) -> BatchSums:
        """Run the model on a batch that is on its device; the loss carries gradients.

        ``module`` is the model, or an engine that wraps it; it is called as the model is.
        """
        ...
