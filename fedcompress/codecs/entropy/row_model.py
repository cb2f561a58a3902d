"""What rows of one matrix tell about each other: contexts for masks and signs, in integers.

Updates of LoRA factors are close to rank one: their rows are large in the same columns, and
their signs agree, or disagree, along the whole row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Ints = NDArray[np.int64]
CONTEXTS, LIMIT = 12, 4096


class Odds:
    """How often a bit was 1 in each context; both ends count alike."""

    def __init__(self, contexts: int, ones: int, totals: int) -> None:
        self._ones = np.full(contexts, ones, np.int64)
        self._totals = np.full(contexts, totals, np.int64)

    def of(self, contexts: Ints) -> NDArray[np.float64]:
        """Probability of a 1."""
        share: NDArray[np.float64] = (self._ones / self._totals)[contexts]
        return share

    def learn(self, contexts: Ints, bits: Bits) -> None:
        """Count, and halve what has grown beyond ``LIMIT``; never certain."""
        self._ones += np.bincount(contexts[bits], minlength=self._ones.size)
        self._totals += np.bincount(contexts, minlength=self._totals.size)
        while (self._totals > LIMIT).any():
            full = self._totals > LIMIT
            self._ones[full] >>= 1
            self._totals[full] >>= 1
        np.clip(self._ones, 1, self._totals - 1, out=self._ones)


class RowCounts:
    """Odds that an entry is sent, by a fading count of the entries sent above it."""

    def __init__(self) -> None:
        self._odds = Odds(CONTEXTS, 1, 16)
        self._above = np.zeros(0, np.int64)  # 16 for an entry sent, fading by 13/16 a row
        self._contexts = np.zeros(0, np.int64)

    def next_tensor(self) -> None:
        """Forget the columns, keep the odds."""
        self._above = np.zeros(0, np.int64)

    def next_row(self, columns: int) -> NDArray[np.float64]:
        """Probability of each entry of the next row."""
        if self._above.size != columns:
            self._above = np.zeros(columns, np.int64)
        self._contexts = np.minimum(self._above >> 2, CONTEXTS - 1)
        return self._odds.of(self._contexts)

    def learn(self, row: Bits) -> None:
        """The row that was coded."""
        self._odds.learn(self._contexts, row)
        self._above = (13 * self._above >> 4) + 16 * row


class Agreement:
    """Odds that a sign agrees with the signs above it, each row turned to agree with them."""

    def __init__(self) -> None:
        self._odds = Odds(6, 12, 16)
        self._above = np.zeros(0, np.int64)

    def start(self, columns: int) -> None:
        """Begin a tensor."""
        self._above = np.zeros(columns, np.int64)

    def contexts(self, columns: Ints) -> Ints:
        """How sure the signs above are: 0 where there are none."""
        above = np.abs(self._above[columns])
        return np.where(above == 0, 0, np.minimum(1 + (above >> 4), 5))

    def above(self, columns: Ints) -> Ints:
        """Evidence for a plus sign."""
        return self._above[columns]

    def odds(self, contexts: Ints) -> NDArray[np.float64]:
        """Probability that a sign agrees; one half where nothing is above."""
        return np.where(contexts == 0, 0.5, self._odds.of(contexts))

    def learn(self, columns: Ints, contexts: Ints, agrees: Bits, plus: Bits) -> None:
        """The signs of a row, after it was turned."""
        known = contexts > 0
        self._odds.learn(contexts[known], agrees[known])
        self._above = np.sign(self._above) * (15 * np.abs(self._above) >> 4)
        self._above[columns] += np.where(plus, 16, -16)
