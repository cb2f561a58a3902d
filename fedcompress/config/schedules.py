"""A schedule changes the learning rate over the steps of all rounds of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _WithWarmup:
    """The learning rate rises linearly from 0 over the first steps."""

    warmup: float = 0.0  # share of all steps if below 1, else number of steps

    def __post_init__(self) -> None:
        if not self.warmup >= 0:
            raise ConfigError("schedule.warmup", self.warmup, "must be >= 0")

    def _progress(self, step: int, total: int) -> tuple[float, float]:
        """Return the factor of the warmup, from 0 to 1, and the share of the steps after it that are done."""
        warmup_steps = round(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if step < warmup_steps:
            return step / warmup_steps, 0.0
        return 1.0, min((step - warmup_steps) / max(1, total - warmup_steps), 1.0)


@dataclass(frozen=True, kw_only=True)
class Constant(_WithWarmup):
    """After the warmup, the learning rate stays as it is."""

    name: ClassVar[str] = "constant"

    def factor(self, step: int, total: int) -> float:
        """Return the factor of the learning rate, from 0 to 1, at a step (the first is 0) of ``total`` steps."""
        return self._progress(step, total)[0]


@dataclass(frozen=True, kw_only=True)
class Linear(_WithWarmup):
    """The learning rate falls linearly to 0, like transformers' ``get_linear_schedule_with_warmup``."""

    name: ClassVar[str] = "linear"

    def factor(self, step: int, total: int) -> float:
        """Return the factor of the learning rate at a step; see ``Constant.factor``."""
        warmup, done = self._progress(step, total)
        return warmup * (1 - done)


@dataclass(frozen=True, kw_only=True)
class Cosine(_WithWarmup):
    """The learning rate falls along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""

    name: ClassVar[str] = "cosine"
    floor: float = 0.0  # factor at the end

    def factor(self, step: int, total: int) -> float:
        """Return the factor of the learning rate at a step; see ``Constant.factor``."""
        warmup, done = self._progress(step, total)
        return warmup * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


Schedule = Constant | Linear | Cosine
SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Constant, Linear, Cosine)}


def parse_schedule(text: str, field: str = "schedule") -> Schedule:
    """Parse a schedule, written ``name`` or ``name(key=value,...)``.

    Args:
        text: such as ``cosine(warmup=0.1)``.
        field: name of the setting in error messages.

    Raises:
        ConfigError: unknown name or key, or a value out of range.
    """
    return parse_call(text, SCHEDULES, field)
