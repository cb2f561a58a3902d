"""Models what the rows of a matrix tell about each other: contexts for positions and for signs, in integers.

Updates of LoRA factors are close to rank one: their rows are large in the same columns, and their signs agree, or
disagree, along the whole row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Ints = NDArray[np.int64]
CONTEXTS = 12  # contexts of ``ColumnModel``: how often, lately, an entry was sent in this column
LIMIT = 4096  # a context that has counted more bits is halved, so that it keeps adapting
_SIGN_CONTEXTS = 6  # contexts of ``SignModel``: how sure the signs above are, from 0 to 5
_SENT = 16  # what one row adds to the evidence of a column


class ContextModel:
    """Counts how often a bit was 1 in each context; writer and reader count alike.

    Args:
        contexts: the number of contexts.
        ones: ones that each context begins with, at least 1.
        totals: bits that each context begins with, more than ``ones``.
    """

    def __init__(self, contexts: int, ones: int, totals: int) -> None:
        self._ones = np.full(contexts, ones, np.int64)
        self._totals = np.full(contexts, totals, np.int64)

    def probabilities(self, contexts: Ints) -> NDArray[np.float64]:
        """Return the probability of a 1 in each of these contexts, strictly between 0 and 1."""
        share: NDArray[np.float64] = (self._ones / self._totals)[contexts]
        return share

    def learn(self, contexts: Ints, bits: Bits) -> None:
        """Count bits in their contexts, and halve the counts beyond ``LIMIT``; no context ever becomes certain."""
        self._ones += np.bincount(contexts[bits], minlength=self._ones.size)
        self._totals += np.bincount(contexts, minlength=self._totals.size)
        while (self._totals > LIMIT).any():
            full = self._totals > LIMIT
            self._ones[full] >>= 1
            self._totals[full] >>= 1
        np.clip(self._ones, 1, self._totals - 1, out=self._ones)


class ColumnModel:
    """Models whether an entry is sent, by a fading count of the entries that were sent above it in its column."""

    def __init__(self) -> None:
        self._model = ContextModel(CONTEXTS, 1, 16)
        self._above = np.zeros(0, np.int64)  # for each column 16 for an entry that was sent, fading by 13/16 a row
        self._contexts = np.zeros(0, np.int64)  # of the row that is coded

    def next_tensor(self) -> None:
        """Forget the columns, but keep the counts of the contexts."""
        self._above = np.zeros(0, np.int64)

    def next_row(self, columns: int) -> NDArray[np.float64]:
        """Return for each entry of the next row the probability that it is sent, shape (columns,)."""
        if self._above.size != columns:
            self._above = np.zeros(columns, np.int64)
        self._contexts = np.minimum(self._above >> 2, CONTEXTS - 1)
        return self._model.probabilities(self._contexts)

    def learn(self, row: Bits) -> None:
        """Learn from the row that was coded: which of its entries are sent, shape (columns,)."""
        self._model.learn(self._contexts, row)
        self._above = (13 * self._above >> 4) + _SENT * row


class SignModel:
    """Models whether a sign agrees with the signs above it in its column.

    A row whose signs mostly disagree is flipped as a whole before it is coded.
    """

    def __init__(self) -> None:
        self._model = ContextModel(_SIGN_CONTEXTS, 12, 16)
        self._above = np.zeros(0, np.int64)

    def start(self, columns: int) -> None:
        """Begin a tensor with this number of columns."""
        self._above = np.zeros(columns, np.int64)

    def contexts(self, columns: Ints) -> Ints:
        """Return how sure the signs above are in these columns, from 0, where there are none, to 5."""
        certainty = np.abs(self._above[columns])
        return np.where(certainty == 0, 0, np.minimum(1 + (certainty >> 4), _SIGN_CONTEXTS - 1))

    def above(self, columns: Ints) -> Ints:
        """Return the evidence for a plus sign in these columns: above 0 for plus, below 0 for minus."""
        return self._above[columns]

    def odds(self, contexts: Ints) -> NDArray[np.float64]:
        """Return the probability that a sign agrees, in each context; one half where nothing is above."""
        return np.where(contexts == 0, 0.5, self._model.probabilities(contexts))

    def learn(self, columns: Ints, contexts: Ints, agrees: Bits, plus: Bits) -> None:
        """Learn from the signs of one row, after it was flipped.

        Args:
            columns: the columns of the signs, shape (n,).
            contexts: the contexts that they were coded in, shape (n,).
            agrees: whether each sign agrees with those above, shape (n,).
            plus: whether each sign is plus, shape (n,).
        """
        known = contexts > 0
        self._model.learn(contexts[known], agrees[known])
        self._above = np.sign(self._above) * (15 * np.abs(self._above) >> 4)
        self._above[columns] += np.where(plus, _SENT, -_SENT)
