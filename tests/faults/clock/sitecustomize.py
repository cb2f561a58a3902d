"""The clock of a process is wrong by what FEDCOMPRESS_TEST_CLOCK says, in seconds; ``jump:N``: by N or -N, in turn.

For ``PYTHONPATH``: Python imports a module of this name at its start. The monotonic clock is as it is.
"""

from __future__ import annotations

import datetime
import itertools
import os
import time

TOLD = os.environ.get("FEDCOMPRESS_TEST_CLOCK", "")


def shift(told: str) -> None:
    """Put other clocks in the places of Python's."""
    size = float(told.removeprefix("jump:"))
    turns = itertools.cycle((size, -size) if told.startswith("jump:") else (size,))
    right, real = time.time, datetime.datetime

    class Shifted(real):
        """A datetime whose now is that of the clock."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.fromtimestamp(time.time(), tz)

    time.time = lambda: right() + next(turns)
    time.time_ns = lambda: int(1e9 * time.time())
    datetime.datetime = Shifted


if TOLD:
    shift(TOLD)
