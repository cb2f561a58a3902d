"""Defines how long work on a file reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with the entries that are done, and with the entries in all


def ignore_progress(done: int, total: int) -> None:
    """Ignore a report: the default where nobody watches."""
