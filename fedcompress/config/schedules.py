"""Schedules of the learning rate, over all rounds of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Warmed:
    """A rise from 0 over the first steps; ``warmup`` is their share of all steps, or their number if above 1."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup >= 0:
            raise ConfigError("schedule.warmup", self.warmup, "must be >= 0")

    def _warm(self, step: int, total: int) -> tuple[float, float]:
        """Factor of the rise, and how much of the rest is done, from 0 to 1."""
        first = round(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if step < first:
            return step / first, 0.0
        return 1.0, min((step - first) / max(1, total - first), 1.0)


@dataclass(frozen=True, kw_only=True)
class Constant(_Warmed):
    """The learning rate as it is."""

    name: ClassVar[str] = "constant"

    def factor(self, step: int, total: int) -> float:
        """Of the learning rate at a step, from 0, of ``total``."""
        return self._warm(step, total)[0]


@dataclass(frozen=True, kw_only=True)
class Linear(_Warmed):
    """Down to 0 at the last step, as transformers' ``get_linear_schedule_with_warmup``."""

    name: ClassVar[str] = "linear"

    def factor(self, step: int, total: int) -> float:
        """As ``Constant.factor``."""
        rise, done = self._warm(step, total)
        return rise * (1 - done)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Warmed):
    """Half a cosine down to ``floor`` (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""

    name: ClassVar[str] = "cosine"
    floor: float = 0.0

    def factor(self, step: int, total: int) -> float:
        """As ``Constant.factor``."""
        rise, done = self._warm(step, total)
        return rise * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


Schedule = Constant | Linear | Cosine
SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Constant, Linear, Cosine)}


def parse_schedule(text: str, field: str = "schedule") -> Schedule:
    """Parse ``name(warmup=...)``.

    Raises:
        ConfigError: unknown name or key, or a value out of range.
    """
    return parse_call(text, SCHEDULES, field)
