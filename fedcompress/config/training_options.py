"""Checks that the settings of a run and the task of a round have in common."""

from __future__ import annotations

import math

from fedcompress.errors import ConfigError
from fedcompress.optim import parse_optimizer
from fedcompress.optim.base import survives_rounds

OPTIMIZER_STATES = ("reset", "keep")


def check_optimizer(field: str, text: str, state: str) -> None:
    """Raise ``ConfigError`` unless ``text`` names an optimizer for rounds, and ``state`` is one of OPTIMIZER_STATES."""
    if not survives_rounds(parse_optimizer(text, field=field)):
        raise ConfigError(field, text, "is for training in one place: its average does not outlive a round")
    if state not in OPTIMIZER_STATES:
        raise ConfigError(f"{field}-state", state, f"must be one of {list(OPTIMIZER_STATES)}")


def check_positive(field: str, value: float, *, zero: bool = False) -> None:
    """Raise ``ConfigError`` unless a value is finite and above 0; with ``zero``, at least 0."""
    if value == math.inf:
        raise ConfigError(field, value, "must be finite")
    if not (value >= 0 if zero else value > 0):
        raise ConfigError(field, value, "must be >= 0" if zero else "must be above 0")
