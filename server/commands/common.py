"""What several of the coordinator's commands need: from DIR or CONFIG.toml to a state directory, and its settings."""

from __future__ import annotations

import sys


def is_terminal() -> bool:
    """Whether somebody watches stderr."""
    return sys.stderr.isatty()
