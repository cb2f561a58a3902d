"""What several of the coordinator's commands need is here."""

from __future__ import annotations

import sys


def is_terminal() -> bool:
    """Return whether somebody watches stderr."""
    return sys.stderr.isatty()
