"""Holds what several of the coordinator's commands need."""

from __future__ import annotations

import sys


def is_terminal() -> bool:
    """Return whether somebody watches stderr."""
    return sys.stderr.isatty()
